"use strict";
// A plain Moleculer node that does what its stdin says.
//
//     node node.cjs 0.15 nats://127.0.0.1:4222 NAMESPACE NODE_ID [BROKER_OPTIONS_AS_JSON]
//
// Each line of stdin is one command, `{"id": 1, "command": "call", …}`; its answer is one line of stdout,
// `{"id":1,"result":…}` or `{"id":1,"error":{…}}`. Commands run side by side. Lines that begin with `{"event":` come
// unasked: `ready`, every WARN, ERROR and FATAL line of the logger (`log`), local events (`local`), events that a
// recorder service received (`recorded`), and `crash`. The end of stdin stops the node.

const readline = require("readline");
const fixtures = require("./fixtures.cjs");
const streams = require("./streams.cjs");
const supervisor = require("./supervisor.cjs");

const [version, natsUrl, namespace, nodeID, extra] = process.argv.slice(2);
const Moleculer = require({ "0.14": "moleculer-014", 0.15: "moleculer-015" }[version]);

function write(line) {
	process.stdout.write(JSON.stringify(line) + "\n");
}

function describe(error) {
	if (!(error instanceof Error)) return { name: "NotAnError", message: String(error) };
	const { name, message, code, type, data, retryable, nodeID } = error;
	return { name, message, code, type, data, retryable, nodeID, class: error.constructor.name };
}

for (const kind of ["uncaughtException", "unhandledRejection"]) {
	process.on(kind, error => {
		write({ event: "crash", kind, error: describe(error), stack: error && error.stack });
		process.exit(70);
	});
}

class Reporter extends Moleculer.Loggers.Base {
	getLogHandler(bindings) {
		return (level, args) => {
			if (level !== "warn" && level !== "error" && level !== "fatal") return;
			const text = args.map(part => (part instanceof Error ? part.stack : inspect(part))).join(" ");
			write({ event: "log", level, module: bindings ? bindings.mod : null, text });
		};
	}
}

function inspect(part) {
	return typeof part === "string" ? part : require("util").inspect(part, { depth: 4, breakLength: Infinity });
}

// Middlewares of Moleculer's own that change packets: `{"middlewares": [["Encryption", "password"], ["Compression"]]}`.
const { middlewares = [], ...options } = extra ? JSON.parse(extra) : {};

const makeBroker = (nodeID, namespace) =>
	new Moleculer.ServiceBroker({
		nodeID,
		namespace,
		transporter: natsUrl,
		logger: new Reporter(),
		logLevel: "info",
		...options,
		middlewares: middlewares.map(([name, ...settings]) => Moleculer.Middlewares.Transmit[name](...settings)),
	});
const broker = makeBroker(nodeID, namespace);

broker.createService({
	name: "watcher",
	events: Object.fromEntries(
		["$node.connected", "$node.updated", "$node.disconnected", "$transit.error"].map(name => [
			name,
			ctx => {
				const { node, unexpected, reconnected, error, type } = ctx.params;
				const about = { node: node ? node.id : null, unexpected, reconnected, type };
				write({ event: "local", name, payload: { ...about, error: error ? describe(error) : undefined } });
			},
		])
	),
});

const list = { onlyAvailable: true, skipInternal: true };

const commands = {
	async call({ action, params, options = {} }) {
		const started = performance.now();
		const meta = options.meta || {}; // the caller sees what comes back in the object it gave
		try {
			const result = await broker.call(action, params, { ...options, meta });
			return { result, meta, undefined: result === undefined, started, ended: performance.now() };
		} catch (error) {
			throw Object.assign(error, { callMeta: meta });
		}
	},
	async mcall({ calls, options }) {
		const results = await broker.mcall(calls, options);
		if (!Array.isArray(results)) return results;
		return results.map(one => (one && one.status === "rejected" ? { ...one, reason: describe(one.reason) } : one));
	},
	emit: ({ name, data, options }) => broker.emit(name, data, options),
	broadcast: ({ name, data, options }) => broker.broadcast(name, data, options),
	waitForServices: ({ services, timeout }) => broker.waitForServices(services, timeout, 20).then(() => true),
	ping: ({ target, timeout }) => broker.ping(target, timeout),
	nodes: () =>
		broker.registry
			.getNodeList({ onlyAvailable: true, withServices: false })
			.map(({ id, available, client, hostname, instanceID, metadata, seq }) => ({
				...{ id, available, client, hostname, instanceID, metadata, seq },
			})),
	services: () => broker.registry.getServiceList({ ...list, withActions: true, withEvents: true }),
	actions: () => broker.registry.getActionList({ ...list, withEndpoints: true }),
	events: () => broker.registry.getEventList({ ...list, withEndpoints: true }),
	async createService({ fixture, options }) {
		const service = broker.createService(fixtures[fixture](Moleculer, write, options || {}));
		await broker.waitForServices(service.fullName, 10000, 20);
		return service.fullName;
	},
	async destroyService({ name }) {
		await broker.destroyService(name);
		return true;
	},
	/** A line typed into moleculer-repl. */
	repl: ({ line }) => require("./repl.cjs")(broker, line),
	/** What the validator of Moleculer finds wrong with each of some params: true for nothing. */
	validate: ({ schema, all }) => {
		const check = broker.validator.validator.compile(schema);
		return all.map(params => check(params));
	},
	callForStream: ({ action, params }) => streams.call(broker, action, params),
	sendStream: ({ action, order, meta }) => streams.send(Moleculer, broker, action, order, meta),
	/** Drives workers, of which `own` are started here, and as many in a cluster of their own; see supervisor.cjs. */
	supervise: ({ workers, own }) =>
		supervisor.superviseWith(Moleculer, broker, id => makeBroker(id, namespace), workers, own),
	superviseOwn: ({ workers }) => supervisor.superviseOwn(Moleculer, id => makeBroker(id, `${namespace}-js`), workers),
	/** Code as a user writes it into a service of this node, with `broker` in reach. */
	async run({ code }) {
		const AsyncFunction = (async () => {}).constructor;
		return new AsyncFunction("broker", code)(broker);
	},
	async stop() {
		await broker.stop();
		return true;
	},
};

async function run({ id, command, ...rest }) {
	try {
		const result = await commands[command](rest);
		write({ id, result: result === undefined ? null : result });
	} catch (error) {
		write({ id, error: describe(error), meta: error && error.callMeta });
	}
	if (command === "stop") process.stdin.destroy();
}

async function main() {
	await broker.start();
	write({ event: "ready", nodeID, moleculer: Moleculer.MOLECULER_VERSION, protocol: Moleculer.PROTOCOL_VERSION });
	const lines = readline.createInterface({ input: process.stdin });
	lines.on("line", line => run(JSON.parse(line)));
	lines.on("close", () => broker.stop().then(() => process.exit(0)));
}

main();
