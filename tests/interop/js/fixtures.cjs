"use strict";
// The services that tests put on a JS node: `fixtures[name](Moleculer, write, options)` gives a schema.

const { performance } = require("perf_hooks");

module.exports = { math, echo, slow, errors, chain, blob, recorder, streams: require("./streams.cjs").service };

/** Typed parameters: Moleculer's validator refuses what does not fit. */
function math() {
	const numbers = { a: "number", b: "number" };
	return {
		name: "math",
		settings: { precision: 2 },
		metadata: { region: "test" },
		actions: {
			add: { params: numbers, handler: ctx => ctx.params.a + ctx.params.b },
			divide: { params: numbers, handler: ctx => ctx.params.a / ctx.params.b },
			secret: { visibility: "protected", handler: () => "secret" },
			hidden: { visibility: "private", handler: () => "hidden" },
		},
	};
}

/** Tells what arrived, and takes orders about the meta. */
function echo(Moleculer, write, { version }) {
	return {
		name: "echo",
		version,
		actions: {
			params: ctx => ctx.params,
			nothing: () => undefined,
			context(ctx) {
				const { params, meta, headers, requestID, parentID, level, caller, nodeID, id, tracing } = ctx;
				const timeout = ctx.options.timeout;
				return { params, meta, headers, requestID, parentID, level, caller, nodeID, id, tracing, timeout };
			},
			setMeta(ctx) {
				Object.assign(ctx.meta, ctx.params);
				return true;
			},
			changeMeta(ctx) {
				for (const name of ctx.params.remove) delete ctx.meta[name];
				Object.assign(ctx.meta, ctx.params.set);
				if (ctx.params.fails) throw new Moleculer.Errors.MoleculerClientError("asked to fail");
				return true;
			},
		},
	};
}

/** Answers after `ms`, telling when it began and ended by its own clock. */
function slow() {
	return {
		name: "slow",
		actions: {
			wait(ctx) {
				const started = performance.now();
				return new Promise(resolve =>
					setTimeout(() => resolve({ started, ended: performance.now() }), ctx.params.ms)
				);
			},
			block(ctx) {
				Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ctx.params.ms);
			},
			impatient: { timeout: 200, handler: () => new Promise(() => {}) },
		},
	};
}

/** Throws the error asked for: any class of Moleculer, a class of its own, a plain Error, or what is no error. */
function errors(Moleculer) {
	const Errors = Moleculer.Errors;
	class HomemadeError extends Errors.MoleculerError {}
	const make = {
		MoleculerError: p => new Errors.MoleculerError(p.message, p.code, p.type, p.data),
		MoleculerRetryableError: p => new Errors.MoleculerRetryableError(p.message, p.code, p.type, p.data),
		MoleculerServerError: p => new Errors.MoleculerServerError(p.message, p.code, p.type, p.data),
		MoleculerClientError: p => new Errors.MoleculerClientError(p.message, p.code, p.type, p.data),
		ValidationError: p => new Errors.ValidationError(p.message, p.type, p.data),
		ServiceNotFoundError: p => new Errors.ServiceNotFoundError(p.data),
		ServiceNotAvailableError: p => new Errors.ServiceNotAvailableError(p.data),
		RequestTimeoutError: p => new Errors.RequestTimeoutError(p.data),
		RequestSkippedError: p => new Errors.RequestSkippedError(p.data),
		RequestRejectedError: p => new Errors.RequestRejectedError(p.data),
		QueueIsFullError: p => new Errors.QueueIsFullError(p.data),
		MaxCallLevelError: p => new Errors.MaxCallLevelError(p.data),
		ServiceSchemaError: p => new Errors.ServiceSchemaError(p.message, p.data),
		BrokerOptionsError: p => new Errors.BrokerOptionsError(p.message, p.data),
		HomemadeError: p => new HomemadeError(p.message, p.code, p.type, p.data),
		GracefulStopTimeoutError: p => new Errors.GracefulStopTimeoutError({ service: p.data }),
		ProtocolVersionMismatchError: p => new Errors.ProtocolVersionMismatchError(p.data),
		InvalidPacketDataError: p => new Errors.InvalidPacketDataError(p.data),
		BrokerDisconnectedError: () => new Errors.BrokerDisconnectedError(),
		TypeError: p => new TypeError(p.message),
		coded: p => Object.assign(new Error(p.message), { code: p.code, type: p.type, data: p.data }),
		text: p => p.message,
		object: p => p.data,
	};
	return {
		name: "errors",
		actions: {
			throw(ctx) {
				throw make[ctx.params.class](ctx.params);
			},
		},
	};
}

/** Calls on: what a nested call brought, and the meta it left. */
function chain(Moleculer, write, { name }) {
	return {
		name: name || "chain",
		actions: {
			async call(ctx) {
				const result = await ctx.call(ctx.params.action, ctx.params.params, ctx.params.options);
				return { result, level: ctx.level, requestID: ctx.requestID, meta: ctx.meta };
			},
			countdown(ctx) {
				const { steps, next } = ctx.params;
				if (steps === 0) return [];
				return ctx.call(next, { steps: steps - 1, next: this.fullName + ".countdown" }).then(path => [
					this.broker.nodeID,
					...path,
				]);
			},
		},
	};
}

/** Answers of any size. */
function blob() {
	return { name: "blob", actions: { make: ctx => "x".repeat(ctx.params.size) } };
}

/** Tells every event it receives. */
function recorder(Moleculer, write, { name, patterns }) {
	const service = name || "recorder";
	const handler = pattern => ctx => {
		const { eventName, eventType, params, meta, headers, nodeID, level, caller, requestID } = ctx;
		write({
			event: "recorded",
			name: eventName,
			service,
			pattern,
			payload: { type: eventType, params, meta, headers, nodeID, level, caller, requestID },
		});
	};
	const events = patterns.map(pattern => [pattern, { handler: handler(pattern) }]);
	return { name: service, events: Object.fromEntries(events) };
}
