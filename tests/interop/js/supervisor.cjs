"use strict";
// A node that puts three workers through everything a user does, and reports what came of it.

const { createHash } = require("crypto");
const { Readable } = require("stream");
const workers = require("./workers.cjs");

module.exports = { superviseOwn, superviseWith };

const EACH = 10; // calls, and events of one name, for each of the workers
const EVENTS = EACH * (3 + 2) + 3 + 9 + 6; // what handlers hear of `events` below, for each of three workers
const INTERNAL = { sent: EACH * 4 + 1 + 4 * 3 + 3, own: 4 + 4 * 3 + 4 }; // the same of `$job.done`: four groups
const UNSHARED = EACH + 1; // `$**` is no subject that NATS can match

/** Starts a cluster of JS workers, and drives them. `make(nodeID)` makes a broker of it. */
async function superviseOwn(Moleculer, make, ids) {
	const supervisor = make("supervisor");
	await supervisor.start();
	try {
		return await superviseWith(Moleculer, supervisor, make, ids, ids);
	} finally {
		await supervisor.stop();
	}
}

/** The same with `own` of the workers started here, and the others there already. */
async function superviseWith(Moleculer, supervisor, make, ids, own) {
	const started = own.map(id => {
		const worker = make(id);
		for (const service of [workers.work, workers.mail]) worker.createService(service(Moleculer));
		return worker;
	});
	await Promise.all(started.map(worker => worker.start()));
	try {
		return await supervise(Moleculer, supervisor, ids);
	} finally {
		await Promise.all(started.map(worker => worker.stop()));
	}
}

/** The report: all of it is the same for workers that behave the same, whatever the order of things was. */
async function supervise(Moleculer, broker, ids) {
	const news = {};
	const count = ctx => (news[`${ctx.eventName} ${ctx.nodeID}`] = (news[`${ctx.eventName} ${ctx.nodeID}`] || 0) + 1);
	broker.createService({ name: "supervisor", events: { "news.*": count, "$news.*": count } });
	await acquainted(broker, ids);
	const seen = {
		members: members(broker),
		calls: await calls(broker, ids),
		errors: await errors(broker, ids),
		balanced: await balanced(broker, ids),
		streams: await streams(Moleculer, broker, ids),
		pings: await pings(broker, ids),
	};
	await events(broker, ids);
	for (const action of ["work.notify", "work.announce"])
		for (const nodeID of ids) await broker.call(action, null, { nodeID });
	return { ...seen, ...(await settled(broker, ids, news)) };
}

/** All of them know the services of all, and of the supervisor. */
async function acquainted(broker, ids) {
	await broker.waitForServices(["work", "mail"], 20000, 20);
	const list = { withEndpoints: true, skipInternal: true };
	const known = (entries, name) => entries.some(({ name: one, count }) => one === name && count === ids.length);
	await until(() => known(broker.registry.getActionList(list), "work.who"));
	await until(() => known(broker.registry.getEventList(list), "order.paid"));
	for (const nodeID of ids) {
		await until(async () => known(await broker.call("$node.actions", list, { nodeID }), "work.who"));
		await until(async () => (await broker.call("$node.events", {}, { nodeID })).some(e => e.name === "$news.*"));
	}
}

/** What the registry of the supervisor lists. */
function members(broker) {
	const names = (entries, of) =>
		entries.map(of).filter(line => !line.includes("watcher")).sort(); // the tests' own service
	const list = { withEndpoints: true, onlyAvailable: true };
	return {
		nodes: names(broker.registry.getNodeList({ onlyAvailable: true }), node => node.id),
		services: names(broker.registry.getServiceList({ onlyAvailable: true }), one => `${one.fullName} ${one.nodeID}`),
		actions: names(broker.registry.getActionList(list), one => `${one.name} ${one.count}`),
		events: names(broker.registry.getEventList(list), one => `${one.name} ${one.group} ${one.count}`),
	};
}

async function calls(broker, ids) {
	const values = {
		...{ when: new Date(1700000000123), bytes: Buffer.from([0, 255]), none: null, deep: [[{ text: "[[DT]]5" }]] },
		numbers: [0, -1, 0.1, 1e21, 2 ** 40, -(2 ** 53 - 1)],
	};
	const [first, second, third] = ids;
	const meta = { user: 7 };
	const requestID = "the request";
	const options = { meta, requestID, nodeID: first };
	return {
		sum: await broker.call("work.add", { a: 1.5, b: 2 }),
		echo: show(await broker.call("work.echo", values)),
		falsy: await Promise.all([0, "", false, null, []].map(value => broker.call("work.echo", value).then(show))),
		direct: await Promise.all(ids.map(nodeID => broker.call("work.who", {}, { nodeID }))),
		many: await broker.mcall(ids.map(() => ({ action: "work.add", params: { a: 1, b: 2 } }))),
		chain: await broker.call("work.chain", { path: [second, third, first] }, options),
		meta,
	};
}

async function errors(broker, ids) {
	const [first, second, third] = ids;
	const fails = (action, params, options) =>
		broker.call(action, params, options).then(
			result => ({ result }),
			({ name, message, code, type, data, retryable, nodeID, constructor }) => ({
				...{ name, message, code, type, data, retryable, nodeID, class: constructor.name },
			})
		);
	const { message, data, ...invalid } = await fails("work.add", { a: "one", b: 2 }, { nodeID: first });
	const late = await fails("work.never", {}, { nodeID: third, timeout: 50 });
	return {
		refused: await fails("work.refuse", {}, { nodeID: first }),
		busy: await fails("work.busy", {}, { nodeID: second }),
		invalid: { ...invalid, fields: data.map(({ field }) => field) },
		unknown: await fails("work.unknown"),
		elsewhere: await fails("work.who", {}, { nodeID: "nobody" }),
		timeout: [late.name, late.code, late.type, late.retryable, late.data.action], // both ends raise it, at once
		nested: await fails("work.chain", { path: [second], end: "work.unknown" }, { nodeID: first }),
	};
}

/** How many calls each worker took; when NATS shares them out, whether each took some. */
async function balanced(broker, ids) {
	const counts = Object.fromEntries(ids.map(id => [id, 0]));
	for (let n = 0; n < EACH * ids.length; n++) counts[await broker.call("work.who")]++;
	if (!broker.options.disableBalancer) return counts;
	return { all: EACH * ids.length, none: ids.filter(id => !counts[id]) };
}

/** To each worker by name: with `disableBalancer`, JS lets NATS send each chunk of a stream to another node. */
async function streams(Moleculer, broker, ids) {
	const old = Moleculer.PROTOCOL_VERSION === "4";
	const send = (action, stream, options) =>
		old ? broker.call(action, stream, options) : broker.call(action, {}, { ...options, stream });
	const chunks = [Buffer.alloc(150000, 200), Buffer.from("[["), Buffer.alloc(3)];
	const bytes = () => Readable.from(chunks, { objectMode: false });
	const objects = () => Readable.from(Array.from({ length: 50 }, (_, n) => ({ n })));
	const reports = ids.map(async nodeID => ({
		digest: await send("work.digest", bytes(), { nodeID, meta: { label: "[[a" } }),
		invert: await read(await send("work.invert", bytes(), { nodeID })),
		produce: await read(await broker.call("work.produce", null, { nodeID })),
		total: await send("work.total", objects(), { nodeID }),
		objects: await read(await broker.call("work.objects", { to: 20 }, { nodeID })),
	}));
	return Promise.all(reports);
}

async function pings(broker, ids) {
	const sound = pong =>
		pong && [pong.nodeID, pong.elapsedTime >= 0, Number.isInteger(pong.elapsedTime), Math.abs(pong.timeDiff) < 60000];
	const all = await broker.ping(undefined, 10000);
	return { one: sound(await broker.ping(ids[0], 10000)), all: Object.keys(all).sort().map(id => sound(all[id])) };
}

async function events(broker, ids) {
	for (let n = 0; n < ids.length * EACH; n++) {
		await broker.emit("user.created", { n: "any" });
		await broker.emit("order.paid", { n: "any" });
		await broker.emit("$job.done", { n: "any" });
	}
	for (let n = 0; n < ids.length; n++) {
		await broker.emit("user.created", { n: "mail" }, { groups: ["mail"] });
		await broker.emit("user.left", { n: "left" });
		await broker.emit("order.item.added", { n: "item" });
		await broker.broadcast("user.created", { n: "all" });
		await broker.broadcast("user.created", { n: "some" }, { groups: ["work"] });
		await broker.broadcast("nobody.listens", { n: "lost" });
		await broker.emit("$job.done", { n: "mail" }, { groups: ["mail"] });
		await broker.broadcast("$job.done", { n: "all" });
		await broker.broadcast("$job.done", { n: "some" }, { groups: ["work"] });
	}
}

/** The counts of the workers and of the supervisor, once all events have arrived. */
async function settled(broker, ids, news) {
	const ask = (action, nodeID) => broker.call(action, null, { nodeID });
	const counts = async id => [id, { work: await ask("work.counts", id), mail: await ask("mail.counts", id) }];
	const look = async () => Object.fromEntries(await Promise.all(ids.map(counts)));
	const isEvent = what => /^(user|order|\$job|\*\.done|\$\*\*)/.test(what);
	const unshared = broker.options.disableBalancer ? UNSHARED : 0;
	const expected = (EVENTS + INTERNAL.sent + INTERNAL.own - unshared) * ids.length;
	let found;
	await until(async () => {
		found = merge(await look());
		const events = Object.keys(found).filter(what => isEvent(what.split(": ")[1]));
		return sum(events.map(what => found[what])) >= expected && sum(Object.values(news)) >= ids.length * 4;
	}).catch(error => Promise.reject(new Error(`${error.message}: ${JSON.stringify({ found, news })}`)));
	const counted = await look(); // once more: what came too often has had its time
	return { counts: broker.options.disableBalancer ? merge(counted) : counted, news };
}

const sum = numbers => numbers.reduce((a, b) => a + b, 0);

/** The counts of all workers together. */
function merge(counts) {
	const merged = {};
	for (const services of Object.values(counts))
		for (const [service, its] of Object.entries(services))
			for (const [what, n] of Object.entries(its)) {
				const name = `${service}: ${what}`;
				merged[name] = (merged[name] || 0) + n;
			}
	return merged;
}

async function until(condition) {
	for (const end = Date.now() + 20000; !(await condition()); await new Promise(resolve => setTimeout(resolve, 20)))
		if (Date.now() > end) throw new Error(`Waited 20 s for ${condition}`);
}

function show(value) {
	if (Buffer.isBuffer(value)) return `Buffer ${value.toString("hex")}`;
	if (value instanceof Date) return `Date ${value.valueOf()}`;
	if (Array.isArray(value)) return value.map(show);
	if (value === null || typeof value !== "object") return value === undefined ? "undefined" : value;
	return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, show(item)]));
}

async function read(stream) {
	const hash = createHash("sha256");
	const objects = [];
	let size = 0;
	for await (const chunk of stream) {
		if (!Buffer.isBuffer(chunk)) objects.push(chunk);
		else {
			hash.update(chunk);
			size += chunk.length;
		}
	}
	return { size, digest: hash.digest("hex"), objects };
}
