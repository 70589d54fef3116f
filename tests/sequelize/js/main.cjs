"use strict";
// Original applications that do what stdin says, each with connections of its own.
//
// Each line of stdin is a command, `{"call": 1, "application": "a", "command": "save", …}`; its answer is one line of
// stdout, `{"call":1,"result":…}` or `{"call":1,"error":{…}}`. Commands run side by side. `open` makes the application,
// `statements` tells its SQL since the last time it was asked. The end of stdin ends the process.

const readline = require("readline");
const { Application } = require("./application.cjs");

const applications = new Map();

function write(line) {
	process.stdout.write(JSON.stringify(line) + "\n");
}

async function run({ call, application, command, ...rest }) {
	try {
		if (command === "open") applications.set(application, new Application(rest.generation, rest.url));
		const one = applications.get(application);
		const done = { open: () => null, statements: () => one.statements.splice(0) }[command];
		const result = await (done ? done() : one[command](rest));
		write({ call, result: result === undefined ? null : result });
	} catch (error) {
		write({ call, error: { name: error.name, message: error.message } });
	}
}

write({ event: "ready" });
const lines = readline.createInterface({ input: process.stdin });
lines.on("line", line => run(JSON.parse(line)));
lines.on("close", () => process.exit(0));
