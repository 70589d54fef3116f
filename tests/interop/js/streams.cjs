"use strict";
// Streams of a JS node: the service `streams`, and what a test lets the node itself send and read.

const { createHash } = require("crypto");
const { Readable } = require("stream");

module.exports = { service, call, send };

/** Bytes that hold every value, in chunks of `chunk`. Both languages make the same. */
function* bytes({ size, chunk }) {
	for (let start = 0; start < size; start += chunk) {
		const part = Buffer.alloc(Math.min(chunk, size - start));
		for (let at = 0; at < part.length; at++) part[at] = (start + at) % 251;
		yield part;
	}
}

function source(order, Errors) {
	if (order.objects) return Readable.from(order.objects);
	if (order.breakAfter === undefined) return Readable.from(bytes(order), { objectMode: false });
	return Readable.from(
		(function* () {
			let number = 0;
			for (const part of bytes(order)) {
				if (number++ === order.breakAfter) break;
				yield part;
			}
			throw new Errors.MoleculerError("broken on purpose", 418, "BROKEN", { after: order.breakAfter });
		})(),
		{ objectMode: false }
	);
}

/** Reads to the end: size and digest of bytes, or the values. */
async function read(stream) {
	const hash = createHash("sha1");
	const objects = [];
	let size = 0;
	for await (const chunk of stream) {
		if (Buffer.isBuffer(chunk)) {
			hash.update(chunk);
			size += chunk.length;
		} else objects.push(chunk);
	}
	return { size, sha1: hash.digest("hex"), objects };
}

function service(Moleculer) {
	const incoming = ctx => (ctx.stream ? ctx.stream : ctx.params); // 0.15 and 0.14
	return {
		name: "streams",
		actions: {
			receive: async ctx => ({ ...(await read(incoming(ctx))), meta: ctx.meta.name }),
			send: ctx => source(ctx.params, Moleculer.Errors),
			back: ctx => incoming(ctx),
		},
	};
}

/** A call that is answered by a stream. */
async function call(broker, action, params) {
	return read(await broker.call(action, params));
}

/** A call with a stream: in 0.14 it is the params, in 0.15 an option. */
async function send(Moleculer, broker, action, order, meta) {
	const stream = source(order, Moleculer.Errors);
	const old = Moleculer.PROTOCOL_VERSION === "4";
	const answer = await (old ? broker.call(action, stream, { meta }) : broker.call(action, {}, { meta, stream }));
	return answer instanceof Readable ? read(answer) : answer;
}
