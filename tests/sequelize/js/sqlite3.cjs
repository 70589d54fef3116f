"use strict";
// What Sequelize needs of the npm package sqlite3, on the SQLite that Node itself has (node:sqlite).
//
// The package is a native addon whose install script fetches a binary or compiles one: neither can be had on a machine
// with npm packages alone. Statements, codes and messages are the package's, and so is the second that a statement
// waits for a busy file; Sequelize's own SQL, conversions and repetitions run unchanged above it. Each statement is
// done before the next one begins, where the package uses threads: so does `serialize`, which Sequelize asks for.

const { DatabaseSync } = require("node:sqlite");

const BUSY_MS = 1000;
const CODES = {
	1: "SQLITE_ERROR",
	5: "SQLITE_BUSY",
	6: "SQLITE_LOCKED",
	8: "SQLITE_READONLY",
	10: "SQLITE_IOERR",
	11: "SQLITE_CORRUPT",
	13: "SQLITE_FULL",
	14: "SQLITE_CANTOPEN",
	19: "SQLITE_CONSTRAINT",
	26: "SQLITE_NOTADB",
};

/** `SQLITE_BUSY: database is locked`: Sequelize tries again after exactly this text. */
function failure(error) {
	const number = (error.errcode || 0) & 0xff;
	const code = CODES[number] || "SQLITE_ERROR";
	return Object.assign(new Error(`${code}: ${error.message}`), { errno: number, code });
}

/** Integers beyond what a JavaScript number holds become the nearest one, as the package has them. */
function asNumbers(row) {
	for (const [name, value] of Object.entries(row)) if (typeof value === "bigint") row[name] = Number(value);
	return row;
}

class Database {
	constructor(filename, mode, callback) {
		this.filename = filename;
		try {
			this.connection = new DatabaseSync(filename, {
				timeout: BUSY_MS,
				enableForeignKeyConstraints: false,
				enableDoubleQuotedStringLiterals: true,
			});
			setImmediate(callback, null);
		} catch (error) {
			setImmediate(callback, failure(error));
		}
	}

	serialize(work) {
		work();
	}

	run(sql, parameters, callback) {
		this.#do(sql, parameters, callback, statement => {
			const { lastInsertRowid, changes } = statement.run(...bound(parameters));
			return [{ lastID: Number(lastInsertRowid), changes: Number(changes) }];
		});
	}

	all(sql, parameters, callback) {
		if (typeof parameters === "function") return this.all(sql, [], parameters);
		this.#do(sql, parameters, callback, statement => [{}, statement.all(...bound(parameters)).map(asNumbers)]);
	}

	close(callback = () => {}) {
		this.connection.close();
		setImmediate(callback, null);
	}

	/** Calls back later, as the package does, with the outcome as `this`. */
	#do(sql, parameters, callback = () => {}, work) {
		let outcome;
		try {
			const statement = this.connection.prepare(sql);
			statement.setReadBigInts(true);
			outcome = work(statement);
		} catch (error) {
			outcome = [{}, undefined, failure(error)];
		}
		const [metadata, rows, error = null] = outcome;
		setImmediate(() => callback.call(metadata, error, rows));
	}
}

function bound(parameters) {
	if (parameters === undefined) return [];
	return Array.isArray(parameters) ? parameters : [parameters];
}

module.exports = { Database, OPEN_READWRITE: 2, OPEN_CREATE: 4 };
