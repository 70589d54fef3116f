"use strict";
// The commands of moleculer-repl, as a person types them; what they print is the result.

const { Command } = require("commander");
const { format } = require("util");
const { parseArgsStringToArgv } = require("string-argv");
const register = require("moleculer-repl/src/commands");

let program;

module.exports = async function repl(broker, line) {
	if (!program) {
		program = new Command();
		program.exitOverride();
		register(program, broker);
	}
	const printed = [];
	const { log, error } = console;
	console.log = console.error = (...parts) => printed.push(format(...parts)); // stdout belongs to the answers
	try {
		await program.parseAsync(parseArgsStringToArgv(line, "node", "repl"));
	} finally {
		Object.assign(console, { log, error });
	}
	return printed.join("\n").replace(/\u001b\[[0-9;]*m/g, "");
};
