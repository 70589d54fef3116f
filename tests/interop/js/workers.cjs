"use strict";
// The services of the three workers that a supervisor drives; their twins in Python are in ../workers.py.

const { createHash } = require("crypto");
const { Readable, Transform } = require("stream");

module.exports = { work, mail };

const incoming = ctx => ctx.stream || ctx.params; // 0.15 and 0.14

function counter() {
	const counts = {};
	return { counts, count: what => (counts[what] = (counts[what] || 0) + 1) };
}

function work(Moleculer) {
	const { counts, count } = counter();
	const { MoleculerClientError, MoleculerRetryableError } = Moleculer.Errors;
	const counted = pattern => ctx => count(`${pattern} ${ctx.eventName} ${ctx.params.n}`);
	return {
		name: "work",
		actions: {
			counts: () => counts,
			who() {
				count("who");
				return this.broker.nodeID;
			},
			echo: ctx => ctx.params,
			add: { params: { a: "number", b: "number" }, handler: ctx => ctx.params.a + ctx.params.b },
			refuse() {
				count("refuse");
				throw new MoleculerClientError("refused", 418, "TEAPOT", { hot: [true] });
			},
			busy() {
				count("busy");
				throw new MoleculerRetryableError("busy", 503, "BUSY", { left: 2 });
			},
			never: () => new Promise(() => {}),
			/** Calls itself on each node of the path in turn. */
			async chain(ctx) {
				count(`chain from ${ctx.caller} at level ${ctx.level}`);
				ctx.meta.trail = [...(ctx.meta.trail || []), this.broker.nodeID];
				const [next, ...path] = ctx.params.path;
				if (!next) return ctx.params.end ? ctx.call(ctx.params.end) : { id: ctx.requestID };
				return ctx.call("work.chain", { path, end: ctx.params.end }, { nodeID: next });
			},
			async notify(ctx) {
				await ctx.emit("news.emitted", { n: 1 });
				await ctx.broadcast("news.broadcast", { n: 2 });
				await ctx.emit("$news.emitted", { n: 3 });
				await ctx.broadcast("$news.broadcast", { n: 4 });
				return true;
			},
			async announce(ctx) {
				await ctx.emit("$job.done", { n: "own" });
				await ctx.broadcast("$job.done", { n: "own to all" });
				await this.broker.broadcastLocal("$job.done", { n: "own at home" });
				return true;
			},
			async digest(ctx) {
				const hash = createHash("sha256");
				let size = 0;
				for await (const chunk of incoming(ctx)) {
					hash.update(chunk);
					size += chunk.length;
				}
				count(`digest of ${size}`);
				return { size, digest: hash.digest("hex"), label: ctx.meta.label };
			},
			invert: ctx =>
				incoming(ctx).pipe(
					new Transform({ transform: (chunk, _, done) => done(null, chunk.map(byte => 255 - byte)) })
				),
			produce: () => Readable.from([Buffer.alloc(70000, 7), Buffer.from("[[")], { objectMode: false }),
			async total(ctx) {
				let total = 0;
				for await (const { n } of incoming(ctx)) total += n;
				return total;
			},
			objects: ctx => Readable.from(Array.from({ length: ctx.params.to }, (_, n) => ({ n, text: `[[${n}` }))),
		},
		events: {
			"user.created": counted("user.created"),
			"user.*": counted("user.*"),
			"order.**": { group: "accounting", handler: counted("order.**") },
			"$job.done": counted("$job.done"),
			"*.done": { group: "every", handler: counted("*.done") },
			"$**": { group: "internal", handler: ctx => ctx.eventName.startsWith("$job") && counted("$**")(ctx) },
		},
	};
}

function mail() {
	const { counts, count } = counter();
	return {
		name: "mail",
		actions: { counts: () => counts },
		events: {
			"user.created": ctx => count(`user.created ${ctx.params.n}`),
			"order.paid": { group: "accounting", handler: ctx => count(`order.paid ${ctx.params.n}`) },
			"$job.*": ctx => count(`$job.* ${ctx.params.n}`),
		},
	};
}
