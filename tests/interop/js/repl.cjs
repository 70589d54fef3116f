"use strict";
// The commands of moleculer-repl, as a person types them; what they print is the result.

const { Command } = require("commander");
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
	const { log } = console;
	console.log = (...parts) => printed.push(parts.join(" ")); // stdout belongs to the answers
	try {
		await program.parseAsync(parseArgsStringToArgv(line, "node", "repl"));
	} finally {
		console.log = log;
	}
	return printed.join("\n").replace(/\u001b\[[0-9;]*m/g, "");
};
