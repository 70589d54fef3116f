"use strict";
// The original application as its tables know it: the Sequelize models of each of its four generations, what they do
// to the schema at a start, and what they send for each change. Everything else of it is left out.
//
//     A  jsonb, every start alters the tables until they are as the model says
//     B  json, likewise, on SQLite too, where every start rebuilds each table by way of a copy
//     C  json, alters on SQLite alone
//     D  as C, with `deletedAt`, which it adds by itself on PostgreSQL

const { DataTypes, Op, Sequelize } = require("sequelize");

const INDEX = "environments_deleted_at_idx";
const MOMENT = { type: DataTypes.DATE, allowNull: true, defaultValue: null };

function connect(url) {
	const statements = [];
	const logging = text => statements.push(text.replace(/^Executing \(.*?\): /, ""));
	const file = url.startsWith("sqlite:///") ? url.slice("sqlite:///".length) : null;
	const sequelize = file
		? new Sequelize({ dialect: "sqlite", storage: file, logging, dialectModule: require("./sqlite3.cjs") })
		: new Sequelize(url, { dialect: "postgres", logging });
	return { sequelize, statements };
}

class Application {
	constructor(generation, url) {
		Object.assign(this, connect(url));
		this.softDelete = generation === "D";
		this.rebuildsFirst = generation !== "A";
		this.alters = generation <= "B" || this.sequelize.getDialect() === "sqlite";
		/** What it holds in memory and takes for the truth, by id. */
		this.memory = new Map();
		const columns = {
			id: { type: DataTypes.STRING, primaryKey: true },
			environment: { type: generation === "A" ? DataTypes.JSONB : DataTypes.JSON },
			environmentUuid: { type: DataTypes.STRING },
			timestamp: { type: DataTypes.DECIMAL },
		};
		const names = { tableName: "environments", timestamps: true };
		// Sequelize's own soft delete, as other programs on the same table may use it.
		this.paranoid = this.sequelize.define("paranoidEnvironment", { ...columns }, { ...names, paranoid: true });
		this.environments = this.sequelize.define(
			"environment",
			{ ...columns, ...(this.softDelete ? { deletedAt: MOMENT } : {}) },
			{ timestamps: true }
		);
		this.metadata = this.sequelize.define(
			"metadata",
			{ key: { type: DataTypes.STRING, primaryKey: true }, value: { type: DataTypes.TEXT, allowNull: false } },
			{ timestamps: true }
		);
	}

	/** What it does to the schema whenever it starts. A column that cannot be added is told and does not end it. */
	async start() {
		for (const model of [this.environments, this.metadata]) {
			if (this.alters && this.rebuildsFirst) {
				await this.sequelize.query(`DROP TABLE IF EXISTS ${model.tableName}_backup`);
			}
			await model.sync({ alter: this.alters });
		}
		if (!this.softDelete) return null;
		try {
			return await this.addDeletedAt();
		} catch (error) {
			return { failed: error.message };
		}
	}

	async addDeletedAt() {
		const tables = this.sequelize.getQueryInterface();
		const added = !("deletedAt" in (await tables.describeTable("environments")));
		if (added) await tables.addColumn("environments", "deletedAt", MOMENT);
		const found =
			this.sequelize.getDialect() === "postgres"
				? await this.sequelize.query(`SELECT 1 FROM pg_indexes WHERE indexname = '${INDEX}'`)
				: await this.sequelize.query(`SELECT 1 FROM sqlite_master WHERE type = 'index' AND name = '${INDEX}'`);
		const indexed = found[0].length === 0;
		if (indexed) await tables.addIndex("environments", ["deletedAt"], { name: INDEX });
		return { added, indexed };
	}

	/** A row as it is, dates and all. */
	async create({ row }) {
		await this.environments.create(row, { silent: "updatedAt" in row });
	}

	/** Writes what it holds over whatever is there, and has it live again. */
	async save({ id, environment, timestamp = Date.now(), deletedAt = null }) {
		const row = { id, environment, environmentUuid: id, timestamp };
		await this.environments.upsert(this.softDelete ? { ...row, deletedAt } : row);
	}

	async update({ id, environment }) {
		const [count] = await this.environments.update({ environment }, { where: { id } });
		return count;
	}

	/** Into the trash, or, before there was one, away for ever. */
	async remove({ id }) {
		if (!this.softDelete) return this.destroy({ id });
		const [count] = await this.environments.update({ deletedAt: new Date() }, { where: { id, deletedAt: null } });
		return count;
	}

	async restore({ id }) {
		const where = { id, deletedAt: { [Op.ne]: null } };
		const [count] = await this.environments.update({ deletedAt: null }, { where });
		return count;
	}

	destroy({ id }) {
		return this.environments.destroy({ where: { id } });
	}

	paranoidDestroy({ id }) {
		return this.paranoid.destroy({ where: { id } });
	}

	paranoidRestore({ id }) {
		return this.paranoid.restore({ where: { id } });
	}

	/** All rows through its own model, or, with `paranoid` said, through the one with Sequelize's soft delete. */
	async findAll({ paranoid }) {
		const rows = await (paranoid === undefined ? this.environments.findAll() : this.paranoid.findAll({ paranoid }));
		return rows.map(row => row.get({ plain: true }));
	}

	async findByPk({ id, paranoid }) {
		const row = await (paranoid === undefined
			? this.environments.findByPk(id)
			: this.paranoid.findByPk(id, { paranoid }));
		return row && row.get({ plain: true });
	}

	live() {
		return this.environments.findAll({ where: this.softDelete ? { deletedAt: null } : {} });
	}

	/** Its memory as after a start: what is live in the table. */
	async load() {
		for (const row of await this.live()) this.memory.set(row.id, row.environment);
		return this.memory.size;
	}

	/** Every document it holds is written, and every live row that it does not hold is removed. */
	async synchronise() {
		for (const [id, environment] of this.memory) await this.save({ id, environment });
		const strangers = (await this.live()).map(row => row.id).filter(id => !this.memory.has(id));
		for (const id of strangers) await this.remove({ id });
		await this.metadata.upsert({ key: "last_sync", value: String(Date.now()) });
		return strangers;
	}

	async close() {
		await this.sequelize.close();
	}
}

module.exports = { Application };
