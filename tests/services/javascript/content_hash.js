// The original's way to its content hash: parse, sort the keys, print, SHA-1. One JSON string with a document a line in,
// one JSON array [printed text, hash] a line out.
const { createHash } = require("node:crypto");
const { createInterface } = require("node:readline");

const sorted = (value) => {
	if (Array.isArray(value)) return value.map(sorted);
	if (value === null || typeof value !== "object") return value;
	const result = {};
	for (const key of Object.keys(value).sort()) result[key] = sorted(value[key]);
	return result;
};

createInterface({ input: process.stdin }).on("line", (line) => {
	const text = JSON.stringify(sorted(JSON.parse(JSON.parse(line))));
	console.log(JSON.stringify([text, createHash("sha1").update(text).digest("hex")]));
});
