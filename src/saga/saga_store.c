/*-------------------------------------------------------------------------
 *
 * saga_store.c
 *	  Sagas between tables and memory.
 *
 * Claiming is locking: FOR UPDATE SKIP LOCKED, no write that says "running", no
 * lease, nothing to clean up after a crash.  What a batch of sagas has come to
 * is written with one statement per kind of change.
 *
 * An unfinished saga has its row in coord_internal.saga and, once it has had to
 * wait, a row in coord_internal.saga_step for each step that something happened
 * to.  A finished one is moved into one row of the archive, its steps with it,
 * so a saga that runs through in one transaction never writes a step row.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/debug_point.h"
#include "base/guc.h"
#include "base/installation.h"
#include "base/json.h"
#include "base/query.h"
#include "saga/saga_task.h"

static const char *const phase_names[] = {"action", "compensation"};

const char *
saga_phase_name(int phase)
{
	return phase < 0 ? NULL : phase_names[phase];
}

/* ----------------------------------------------------------------
 *		Arrays of values, one element per row to be written
 * ----------------------------------------------------------------
 */

void
column_init(Column *columns, int ncolumns, const Oid *types, int nrows)
{
	for (int i = 0; i < ncolumns; i++)
	{
		columns[i].type = types[i];
		columns[i].values = palloc0(sizeof(Datum) * Max(nrows, 1));
		columns[i].nulls = palloc0(sizeof(bool) * Max(nrows, 1));
	}
}

void
column_array(Datum *values, const Column *columns, int ncolumns, int nrows)
{
	for (int i = 0; i < ncolumns; i++)
	{
		int			dims[1] = {nrows};
		int			lbs[1] = {1};
		int16		typlen;
		bool		typbyval;
		char		typalign;

		get_typlenbyvalalign(columns[i].type, &typlen, &typbyval, &typalign);
		values[i] = PointerGetDatum(construct_md_array(columns[i].values,
													   columns[i].nulls,
													   1, dims, lbs,
													   columns[i].type,
													   typlen, typbyval, typalign));
	}
}

void
column_text(Column *column, int row, const char *text)
{
	column->nulls[row] = text == NULL;
	if (text != NULL)
		column->values[row] = CStringGetTextDatum(text);
}

void
column_time(Column *column, int row, TimestampTz time)
{
	column->nulls[row] = time == 0;
	column->values[row] = TimestampTzGetDatum(time);
}

void
column_jsonb(Column *column, int row, Jsonb *jsonb)
{
	column->nulls[row] = jsonb == NULL;
	column->values[row] = PointerGetDatum(jsonb);
}

/* ----------------------------------------------------------------
 *		Loading
 * ----------------------------------------------------------------
 */

static void
set_correlation(Saga *saga, const pg_uuid_t *uuid)
{
	static const char hex[] = "0123456789abcdef";
	char	   *to = saga->correlation_id;

	for (int i = 0; i < UUID_LEN; i++)
	{
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*to++ = '-';
		*to++ = hex[uuid->data[i] >> 4];
		*to++ = hex[uuid->data[i] & 15];
	}
	*to = '\0';
	saga->has_correlation = true;
}

static bool
same_text(uint64 row, int column, const char *expected)
{
	bool		isnull;
	text	   *value = DatumGetTextPP(query_value(row, column, &isnull));

	return !isnull && VARSIZE_ANY_EXHDR(value) == strlen(expected) &&
		memcmp(VARDATA_ANY(value), expected, strlen(expected)) == 0;
}

/* One row of the claim; the definition is looked up later. */
static Saga *
read_saga(MemoryContext context, uint64 row, int64 *definition)
{
	Saga	   *saga = MemoryContextAllocZero(context, sizeof(Saga));
	bool		isnull;
	Datum		value;

	saga->id = query_int8(row, 1);
	saga->tid = *(ItemPointer) DatumGetPointer(query_value(row, 2, &isnull));
	*definition = query_int8(row, 3);
	saga->owner = DatumGetObjectId(query_value(row, 4, &isnull));
	if (same_text(row, 5, "running"))
		saga->status = SAGA_RUNNING;
	else
		saga->status = machine_state(&saga_machine, query_text(context, row, 5));
	saga->stored_status = saga->status;
	saga->backward = DatumGetBool(query_value(row, 6, &isnull));
	saga->cause = query_text(context, row, 7);
	saga->error = query_text(context, row, 8);
	saga->key = query_text(context, row, 9);
	saga->input = DatumGetJsonbP(query_copy(context, row, 10, &isnull));
	saga->priority = DatumGetInt32(query_value(row, 11, &isnull));
	value = query_value(row, 12, &isnull);
	if (!isnull)
		set_correlation(saga, DatumGetUUIDP(value));
	saga->created_at = query_time(row, 13);
	saga->started_at = query_time(row, 14);
	saga->wake_at = query_time(row, 15);
	saga->deadline_at = query_time(row, 16);
	saga->next_sequence = DatumGetInt32(query_value(row, 17, &isnull));
	saga->has_steps = DatumGetBool(query_value(row, 18, &isnull));
	saga->start_at = query_time(row, 19);
	(void) query_value(row, 20, &isnull);
	saga->parent = isnull ? 0 : query_int8(row, 20);
	saga->finished_at = query_time(row, 21);
	saga->parked = saga->status == SAGA_COMPLETED;
	return saga;
}

static int
compare_id(const void *a, const void *b)
{
	int64		x = (*(Saga *const *) a)->id;
	int64		y = (*(Saga *const *) b)->id;

	return x < y ? -1 : x > y;
}

static int
compare_rank(const void *a, const void *b)
{
	const Saga *x = *(Saga *const *) a;
	const Saga *y = *(Saga *const *) b;

	if (x->priority != y->priority)
		return x->priority > y->priority ? -1 : 1;
	return compare_id(a, b);
}

/*
 * Read the step rows of those sagas that have some, or (results) of which a step
 * is completed; "sagas" is in id order.
 */
static void
load_steps(Turn *turn, Saga **sagas, int count, bool results)
{
	static Statement read = {
		"SELECT saga_id, ordinal, status, phase, attempt, sequence, result,"
		" has_result, error, sqlstate, error_detail, error_context,"
		" next_attempt_at, started_at, finished_at, waiting, child, items"
		" FROM coord_internal.saga_step WHERE saga_id = ANY ($1)",
		1, {INT8ARRAYOID}
	};
	Datum	   *ids = palloc(sizeof(Datum) * count);
	QueryScope	scope;
	Datum		value;
	uint64		rows;
	int			nids = 0;

	for (int i = 0; i < count; i++)
	{
		if (sagas[i]->has_steps && (!results || sagas[i]->next_sequence > 1))
			ids[nids++] = Int64GetDatum(sagas[i]->id);
	}
	if (nids == 0)
		return;
	query_begin(&scope);
	value = PointerGetDatum(construct_array(ids, nids, INT8OID, 8, true, TYPALIGN_DOUBLE));
	rows = query_run(&read, &value, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
	{
		Saga		key;
		Saga	   *keyp = &key;
		Saga	   *saga;
		StepState  *state;
		char	   *text;
		int			ordinal;
		bool		isnull;

		key.id = query_int8(i, 1);
		saga = *(Saga **) bsearch(&keyp, sagas, count, sizeof(Saga *), compare_id);
		ordinal = DatumGetInt32(query_value(i, 2, &isnull));
		if (ordinal < 0 || ordinal >= saga->def->nsteps)
			elog(ERROR, "saga " INT64_FORMAT " has no step %d", saga->id, ordinal);
		state = &saga->steps[ordinal];
		text = query_text(turn->context, i, 3);
		state->status = machine_state(&step_machine, text);
		state->phase = same_text(i, 4, phase_names[PHASE_ACTION]) ?
			PHASE_ACTION : PHASE_COMPENSATION;
		state->attempt = DatumGetInt32(query_value(i, 5, &isnull));
		state->sequence = DatumGetInt32(query_value(i, 6, &isnull));
		state->result = (Jsonb *) DatumGetPointer(query_copy(turn->context, i, 7, &isnull));
		if (isnull)
			state->result = NULL;
		state->has_result = DatumGetBool(query_value(i, 8, &isnull));
		state->error = query_text(turn->context, i, 9);
		state->sqlstate = query_text(turn->context, i, 10);
		state->detail = query_text(turn->context, i, 11);
		state->context = query_text(turn->context, i, 12);
		state->next_attempt_at = query_time(i, 13);
		state->started_at = query_time(i, 14);
		state->finished_at = query_time(i, 15);
		state->waiting = DatumGetBool(query_value(i, 16, &isnull));
		(void) query_value(i, 17, &isnull);
		state->child = isnull ? 0 : query_int8(i, 17);
		state->items = DatumGetInt32(query_value(i, 18, &isnull));
		if (isnull)
			state->items = 0;
	}
	query_end(&scope);
}

#define SAGA_COLUMNS \
	"SELECT s.id, s.ctid, definition, owner, status, backward, cause, error, key," \
	" input, priority, correlation_id, created_at, started_at, wake_at," \
	" deadline_at, next_sequence, has_steps, start_at, parent_id, finished_at" \
	" FROM coord_internal.saga s WHERE s.id = ANY ($1)"

/* Run a statement that begins with SAGA_COLUMNS; sagas in the order of ids. */
static Saga **
load(Turn *turn, Statement *statement, const int64 *ids, int count, TimestampTz due,
	 int *nloaded)
{
	Saga	  **sagas = palloc(sizeof(Saga *) * Max(count, 1));
	int64	   *definitions = palloc(sizeof(int64) * Max(count, 1));
	QueryScope	scope;
	Datum		values[3];
	uint64		rows;

	values[0] = query_int8_array(ids, count);
	values[1] = TimestampTzGetDatum(due);
	values[2] = Int64GetDatum(installation_home());

	query_begin(&scope);
	rows = query_run(statement, values, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
		sagas[i] = read_saga(turn->context, i, &definitions[i]);
	query_end(&scope);

	for (uint64 i = 0; i < rows; i++)
	{
		sagas[i]->def = saga_definition_by_id(definitions[i]);
		sagas[i]->steps = palloc0(sizeof(StepState) * sagas[i]->def->nsteps);
	}
	qsort(sagas, rows, sizeof(Saga *), compare_id);
	*nloaded = (int) rows;
	return sagas;
}

/*
 * Claim and load those of "ids" that nobody else holds and, unless "due" is 0,
 * that are due by then or have something in their inbox.  Returns them in order
 * of priority and age, in the turn's memory context.  The claim lasts until the
 * transaction ends.
 */
Saga **
saga_load(Turn *turn, const int64 *ids, int count, TimestampTz due, int *nloaded)
{
	/* Not "wake_at <= $2", which could be planned through the other index. */
	static Statement claim_due = {
		SAGA_COLUMNS " AND home = $3 AND (coalesce(wake_at, 'infinity') <= $2"
		" OR EXISTS (SELECT FROM coord_internal.saga_inbox i WHERE i.saga_id = s.id))"
		" FOR UPDATE OF s SKIP LOCKED",
		3, {INT8ARRAYOID, TIMESTAMPTZOID, INT8OID}
	};
	static Statement claim_any = {
		SAGA_COLUMNS " FOR UPDATE SKIP LOCKED",
		1, {INT8ARRAYOID}
	};
	MemoryContext old = MemoryContextSwitchTo(turn->context);
	Saga	  **sagas = load(turn, due != 0 ? &claim_due : &claim_any, ids, count, due,
							 nloaded);

	load_steps(turn, sagas, *nloaded, false);
	/*
	 * A worker that comes by while they are locked here passes over them; it is
	 * told again when this transaction ends, whichever way.
	 */
	for (int i = 0; i < *nloaded && !turn->worker; i++)
	{
		if (sagas[i]->wake_at != 0 || sagas[i]->def->waits || sagas[i]->parent != 0)
			doorbell_due_at_end(sagas[i]->id, sagas[i]->priority,
								sagas[i]->owner, sagas[i]->wake_at);
	}
	qsort(sagas, *nloaded, sizeof(Saga *), compare_rank);
	MemoryContextSwitchTo(old);
	return sagas;
}

/* ----------------------------------------------------------------
 *		Reading without claiming
 *
 * Tasks of one saga come one after the other, and its input and results may be
 * large, so the sagas read last are kept.  The row's place and inserting
 * transaction say whether one has changed: whatever a turn changes in a saga or
 * in its steps, it writes the saga's row.
 * ----------------------------------------------------------------
 */

#define KEPT_SAGAS 8

typedef struct KeptSaga
{
	Saga	   *saga;			/* NULL: free */
	TransactionId xmin;
	MemoryContext context;
} KeptSaga;

/* Owned by saga_read(); contexts below TopMemoryContext. */
static KeptSaga kept[KEPT_SAGAS];
static int	kept_next = 0;

/* The kept saga with this id, if its row is still this one. */
static Saga *
find_kept(int64 id, ItemPointer tid, TransactionId xmin)
{
	for (int i = 0; i < KEPT_SAGAS; i++)
	{
		if (kept[i].saga != NULL && kept[i].saga->id == id && kept[i].xmin == xmin &&
			ItemPointerEquals(&kept[i].saga->tid, tid))
			return kept[i].saga;
	}
	return NULL;
}

/* Read sagas as they are now, ready for saga_document(). */
static Saga **
read_sagas(Turn *turn, const int64 *ids, int count, int *nread)
{
	static Statement read = {
		SAGA_COLUMNS " AND home = $3",
		3, {INT8ARRAYOID, TIMESTAMPTZOID, INT8OID}
	};
	MemoryContext old = MemoryContextSwitchTo(turn->context);
	Saga	  **sagas = load(turn, &read, ids, count, 0, nread);

	load_steps(turn, sagas, *nread, true);
	for (int i = 0; i < *nread; i++)
		saga_prepare_results(sagas[i]);
	MemoryContextSwitchTo(old);
	return sagas;
}

/* Read one saga and keep it; NULL when it is gone. */
static Saga *
read_and_keep(const SagaRow *row)
{
	Turn		turn = {0};
	Saga	  **sagas;
	int			count;

	for (int i = 0; i < KEPT_SAGAS; i++)
	{
		if (kept[i].saga != NULL && kept[i].saga->id == row->id)
			kept_next = i;
	}
	kept[kept_next].saga = NULL;
	if (kept[kept_next].context != NULL)
		MemoryContextDelete(kept[kept_next].context);
	kept[kept_next].context = NULL;
	turn.context = AllocSetContextCreate(CurrentMemoryContext, "coord kept saga",
										 ALLOCSET_DEFAULT_SIZES);
	sagas = read_sagas(&turn, &row->id, 1, &count);
	if (count == 0)
		return NULL;

	/* Only what is complete is kept. */
	MemoryContextSetParent(turn.context, TopMemoryContext);
	kept[kept_next].context = turn.context;
	kept[kept_next].saga = sagas[0];
	kept[kept_next].xmin = row->xmin;
	kept_next = (kept_next + 1) % KEPT_SAGAS;
	return sagas[0];
}

static int
compare_rows(const void *a, const void *b)
{
	int64		x = ((const SagaRow *) a)->id;
	int64		y = ((const SagaRow *) b)->id;

	return x < y ? -1 : x > y;
}

/*
 * Read the sagas of these rows, of which several may be the same, without
 * claiming them: what the documents of tasks are made of.  "rows" are sorted by
 * it.  The result is in the order of ids; sagas that are gone, or not at home
 * here, are left out.  They are valid until the next reading outside of a turn, or
 * as long as the turn's memory, and not to be changed.
 */
Saga **
saga_read(Turn *turn, SagaRow *rows, int count, int *nread)
{
	Saga	  **sagas = MemoryContextAlloc(turn->context, sizeof(Saga *) * Max(count, 1));
	int64	   *missing = palloc(sizeof(int64) * Max(count, 1));
	const SagaRow *last_missing = NULL;
	int			nmissing = 0;
	int			n = 0;

	qsort(rows, count, sizeof(SagaRow), compare_rows);
	for (int i = 0; i < count; i++)
	{
		Saga	   *saga;

		if (i > 0 && rows[i].id == rows[i - 1].id)
			continue;
		saga = find_kept(rows[i].id, &rows[i].tid, rows[i].xmin);
		if (saga != NULL)
			sagas[n++] = saga;
		else
		{
			missing[nmissing++] = rows[i].id;
			last_missing = &rows[i];
		}
	}
	/* To keep one may free another: not one found here, or that a turn below uses. */
	if (nmissing == 1 && n == 0 && !saga_has_in_hand())
	{
		sagas[n] = read_and_keep(last_missing);
		n += sagas[n] != NULL;
	}
	else if (nmissing > 0)
	{
		int			nloaded;
		Saga	  **loaded = read_sagas(turn, missing, nmissing, &nloaded);

		memcpy(&sagas[n], loaded, sizeof(Saga *) * nloaded);
		n += nloaded;
	}
	qsort(sagas, n, sizeof(Saga *), compare_id);
	*nread = n;
	return sagas;
}

/* One of saga_read()'s by id; NULL when it is not among them. */
Saga *
saga_find_read(Saga **sagas, int count, int64 id)
{
	Saga		key;
	Saga	   *keyp = &key;
	Saga	  **found;

	key.id = id;
	found = bsearch(&keyp, sagas, count, sizeof(Saga *), compare_id);
	return found ? *found : NULL;
}

/* ----------------------------------------------------------------
 *		Writing back
 * ----------------------------------------------------------------
 */

static void
write_time(JsonWriter *writer, const char *key, TimestampTz time)
{
	if (time == 0)
		return;
	json_key(writer, key);
	json_integer(writer, time);
}

static void
write_text(JsonWriter *writer, const char *key, const char *text)
{
	if (text == NULL)
		return;
	json_key(writer, key);
	json_string(writer, text);
}

/*
 * The steps as the archive keeps them: an array of objects, absent members
 * being null, times in microseconds of PostgreSQL's epoch.  Members are written
 * in jsonb's own order, so that nothing is sorted.
 */
static Jsonb *
archived_steps(const Saga *saga)
{
	JsonWriter	writer = {0};

	json_begin_array(&writer);
	for (int i = 0; i < saga->def->nsteps; i++)
	{
		const StepState *state = &saga->steps[i];

		json_begin_object(&writer);
		json_key(&writer, "step");
		json_string(&writer, saga->def->steps[i].name);
		write_text(&writer, "error", state->error);
		if (state->phase == PHASE_COMPENSATION)
			write_text(&writer, "phase", phase_names[state->phase]);
		if (state->has_result)
		{
			json_key(&writer, "result");
			json_value(&writer, state->result);
		}
		json_key(&writer, "status");
		json_string(&writer, step_machine.states[state->status]);
		if (state->attempt != 1)
		{
			json_key(&writer, "attempt");
			json_integer(&writer, state->attempt);
		}
		write_text(&writer, "sqlstate", state->sqlstate);
		write_time(&writer, "started_at", state->started_at);
		write_time(&writer, "finished_at", state->finished_at);
		write_text(&writer, "error_detail", state->detail);
		write_text(&writer, "error_context", state->context);
		json_end_object(&writer);
	}
	json_end_array(&writer);
	return json_finish(&writer);
}

/* Move finished sagas into the archive. */
static void
write_finished(Saga **sagas, int count)
{
	static Statement move = {
		"WITH gone AS ("
		" DELETE FROM coord_internal.saga s"
		" USING unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
		" AS u(tid, name, version, old_status, status, backward, cause, error,"
		" started_at, finished_at, steps)"
		" WHERE s.ctid = u.tid AND s.status = u.old_status"
		" RETURNING s.id, u.name, u.version, s.owner, u.status, u.backward,"
		" u.cause, u.error, s.key, s.input, s.priority, s.labels,"
		" s.correlation_id, s.created_at, u.started_at, u.finished_at,"
		" s.deadline_at, u.steps)"
		" INSERT INTO coord_internal.saga_archive"
		" (id, name, version, owner, status, backward, cause, error, key, input,"
		" priority, labels, correlation_id, created_at, started_at, finished_at,"
		" deadline_at, steps) SELECT * FROM gone",
		11, {TIDARRAYOID, TEXTARRAYOID, INT4ARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
			BOOLARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TIMESTAMPTZARRAYOID,
		TIMESTAMPTZARRAYOID, JSONBARRAYOID}
	};
	static const Oid types[] = {
		TIDOID, TEXTOID, INT4OID, TEXTOID, TEXTOID, BOOLOID, TEXTOID, TEXTOID,
		TIMESTAMPTZOID, TIMESTAMPTZOID, JSONBOID
	};
	static Statement drop_steps = {
		"DELETE FROM coord_internal.saga_step WHERE saga_id = ANY ($1)",
		1, {INT8ARRAYOID}
	};
	Column		columns[lengthof(types)];
	Datum		values[lengthof(types)];
	Datum	   *with_steps = palloc(sizeof(Datum) * count);
	int			nwith_steps = 0;
	QueryScope	scope;

	column_init(columns, lengthof(types), types, count);
	for (int i = 0; i < count; i++)
	{
		Saga	   *saga = sagas[i];

		/* One kept for its parent for so long that its place there is gone. */
		if (saga->finished_at < clock_now() - guc_saga_retention * USECS_PER_MINUTE / 2)
			saga->finished_at = clock_now();
		columns[0].values[i] = PointerGetDatum(&saga->tid);
		column_text(&columns[1], i, saga->def->name);
		columns[2].values[i] = Int32GetDatum(saga->def->version);
		column_text(&columns[3], i, saga_machine.states[saga->stored_status]);
		column_text(&columns[4], i, saga_machine.states[saga->status]);
		columns[5].values[i] = BoolGetDatum(saga->backward);
		column_text(&columns[6], i, saga->cause);
		column_text(&columns[7], i, saga->error);
		column_time(&columns[8], i, saga->started_at);
		column_time(&columns[9], i, saga->finished_at);
		column_jsonb(&columns[10], i, archived_steps(saga));
		if (saga->has_steps)
			with_steps[nwith_steps++] = Int64GetDatum(saga->id);
	}
	column_array(values, columns, lengthof(types), count);

	query_begin(&scope);
	if (query_run(&move, values, NULL, 0) != count)
		elog(ERROR, "a saga that was claimed has changed");
	if (nwith_steps > 0)
	{
		values[0] = PointerGetDatum(construct_array(with_steps, nwith_steps, INT8OID,
													8, true, TYPALIGN_DOUBLE));
		query_run(&drop_steps, values, NULL, 0);
	}
	query_end(&scope);
	for (int i = 0; i < count; i++)
	{
		doorbell_finished_at_commit(sagas[i]->id);
		if (sagas[i]->def->participant)
			doorbell_finished_at_commit(saga_participant_gtid(sagas[i]));
		suspect_clear(sagas[i]->id);
	}
}

/* Write the steps of unfinished sagas that something happened to. */
static void
write_steps(Saga **sagas, int count)
{
	static Statement upsert = {
		"INSERT INTO coord_internal.saga_step AS s"
		" (saga_id, ordinal, status, phase, attempt, sequence, result, has_result,"
		" error, sqlstate, error_detail, error_context, next_attempt_at,"
		" started_at, finished_at, waiting, child, items)"
		" SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12,"
		" $13, $14, $15, $16, $17, $18)"
		" ON CONFLICT (saga_id, ordinal) DO UPDATE SET status = excluded.status,"
		" phase = excluded.phase, attempt = excluded.attempt,"
		" sequence = excluded.sequence, result = excluded.result,"
		" has_result = excluded.has_result, error = excluded.error,"
		" sqlstate = excluded.sqlstate, error_detail = excluded.error_detail,"
		" error_context = excluded.error_context,"
		" next_attempt_at = excluded.next_attempt_at,"
		" started_at = excluded.started_at, finished_at = excluded.finished_at,"
		" waiting = excluded.waiting, child = excluded.child, items = excluded.items",
		18, {INT8ARRAYOID, INT4ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, INT4ARRAYOID,
			INT4ARRAYOID, JSONBARRAYOID, BOOLARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
			TEXTARRAYOID, TEXTARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID,
		TIMESTAMPTZARRAYOID, BOOLARRAYOID, INT8ARRAYOID, INT4ARRAYOID}
	};
	static const Oid types[] = {
		INT8OID, INT4OID, TEXTOID, TEXTOID, INT4OID, INT4OID, JSONBOID, BOOLOID,
		TEXTOID, TEXTOID, TEXTOID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID,
		TIMESTAMPTZOID, BOOLOID, INT8OID, INT4OID
	};
	Column		columns[lengthof(types)];
	Datum		values[lengthof(types)];
	QueryScope	scope;
	int			nrows = 0;
	int			row = 0;

	for (int i = 0; i < count; i++)
	{
		for (int j = 0; j < sagas[i]->def->nsteps; j++)
			nrows += sagas[i]->steps[j].dirty;
	}
	if (nrows == 0)
		return;
	column_init(columns, lengthof(types), types, nrows);
	for (int i = 0; i < count; i++)
	{
		for (int j = 0; j < sagas[i]->def->nsteps; j++)
		{
			StepState  *state = &sagas[i]->steps[j];

			if (!state->dirty)
				continue;
			columns[0].values[row] = Int64GetDatum(sagas[i]->id);
			columns[1].values[row] = Int32GetDatum(j);
			column_text(&columns[2], row, step_machine.states[state->status]);
			column_text(&columns[3], row, phase_names[state->phase]);
			columns[4].values[row] = Int32GetDatum(state->attempt);
			columns[5].values[row] = Int32GetDatum(state->sequence);
			column_jsonb(&columns[6], row, state->result);
			columns[7].values[row] = BoolGetDatum(state->has_result);
			column_text(&columns[8], row, state->error);
			column_text(&columns[9], row, state->sqlstate);
			column_text(&columns[10], row, state->detail);
			column_text(&columns[11], row, state->context);
			column_time(&columns[12], row, state->next_attempt_at);
			column_time(&columns[13], row, state->started_at);
			column_time(&columns[14], row, state->finished_at);
			columns[15].values[row] = BoolGetDatum(state->waiting);
			columns[16].values[row] = Int64GetDatum(state->child);
			columns[16].nulls[row] = state->child == 0;
			columns[17].values[row] = Int32GetDatum(state->items);
			columns[17].nulls[row] = state->items == 0;
			row++;
		}
	}
	column_array(values, columns, lengthof(types), nrows);
	query_begin(&scope);
	query_run(&upsert, values, NULL, 0);
	query_end(&scope);
}

/* Write sagas that go on later. */
static void
write_waiting(Turn *turn, Saga **sagas, int count)
{
	static Statement update = {
		"UPDATE coord_internal.saga s SET status = u.status,"
		" backward = u.backward, cause = u.cause, error = u.error,"
		" input = coalesce(u.input, s.input), started_at = u.started_at,"
		" wake_at = u.wake_at, next_sequence = u.next_sequence,"
		" has_steps = u.has_steps, finished_at = u.finished_at"
		" FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
		" AS u(tid, old_status, status, backward, cause, error, input, started_at,"
		" wake_at, next_sequence, has_steps, finished_at)"
		" WHERE s.ctid = u.tid AND s.status = u.old_status",
		12, {TIDARRAYOID, TEXTARRAYOID, TEXTARRAYOID, BOOLARRAYOID, TEXTARRAYOID,
			TEXTARRAYOID, JSONBARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID,
		INT4ARRAYOID, BOOLARRAYOID, TIMESTAMPTZARRAYOID}
	};
	static const Oid types[] = {
		TIDOID, TEXTOID, TEXTOID, BOOLOID, TEXTOID, TEXTOID, JSONBOID,
		TIMESTAMPTZOID, TIMESTAMPTZOID, INT4OID, BOOLOID, TIMESTAMPTZOID
	};
	Column		columns[lengthof(types)];
	Datum		values[lengthof(types)];
	QueryScope	scope;

	column_init(columns, lengthof(types), types, count);
	for (int i = 0; i < count; i++)
	{
		Saga	   *saga = sagas[i];

		for (int j = 0; j < saga->def->nsteps && !saga->has_steps; j++)
			saga->has_steps = saga->steps[j].dirty;
		columns[0].values[i] = PointerGetDatum(&saga->tid);
		column_text(&columns[1], i, saga_machine.states[saga->stored_status]);
		column_text(&columns[2], i, saga_machine.states[saga->status]);
		columns[3].values[i] = BoolGetDatum(saga->backward);
		column_text(&columns[4], i, saga->cause);
		column_text(&columns[5], i, saga->error);
		column_jsonb(&columns[6], i, saga->input_dirty ? saga->input : NULL);
		column_time(&columns[7], i, saga->started_at);
		column_time(&columns[8], i, saga->wake_at);
		columns[9].values[i] = Int32GetDatum(saga->next_sequence);
		columns[10].values[i] = BoolGetDatum(saga->has_steps);
		column_time(&columns[11], i, saga->finished_at);
	}
	column_array(values, columns, lengthof(types), count);
	query_begin(&scope);
	if (query_run(&update, values, NULL, 0) != count)
		elog(ERROR, "a saga that was claimed has changed");
	query_end(&scope);
	for (int i = 0; i < count; i++)
	{
		if (sagas[i]->status == SAGA_SUSPENDED && sagas[i]->stored_status != SAGA_SUSPENDED)
			ereport(LOG,
					(errmsg("saga " INT64_FORMAT " (\"%s\") is suspended",
							sagas[i]->id, sagas[i]->def->name),
					 errhint("SELECT * FROM coord.stuck;")));
		if (sagas[i]->def->participant)
			doorbell_finished_at_commit(saga_participant_gtid(sagas[i]));
		if (sagas[i]->not_now && turn->worker)
			continue;			/* the worker goes on with it at once */
		if (sagas[i]->wake_at != 0)
			doorbell_due_at_commit(sagas[i]->id, sagas[i]->priority,
								   sagas[i]->owner, sagas[i]->wake_at);
		else
			doorbell_finished_at_commit(sagas[i]->id);	/* suspended or paused */
	}
	write_steps(sagas, count);
}

/* Remember a row for the log; the strings must live as long as the turn. */
void
saga_log(Turn *turn, const LogRow *row)
{
	MemoryContext old = MemoryContextSwitchTo(turn->context);

	if (turn->nlog == turn->log_size)
	{
		turn->log_size = turn->log_size ? turn->log_size * 2 : 16;
		if (turn->log == NULL)
			turn->log = palloc(sizeof(LogRow) * turn->log_size);
		else
			turn->log = repalloc(turn->log, sizeof(LogRow) * turn->log_size);
	}
	turn->log[turn->nlog++] = *row;
	MemoryContextSwitchTo(old);
}

static void
write_log(Turn *turn)
{
	static Statement insert = {
		"INSERT INTO coord_internal.saga_log (saga_id, name, owner, at, event, step,"
		" phase, attempt, role, reason, error, sqlstate, error_detail,"
		" error_context)"
		" SELECT u.saga_id, u.name, u.owner, u.at, u.event, u.step, u.phase, u.attempt,"
		" coalesce(r.rolname, u.role::text), u.reason, u.error, u.sqlstate,"
		" u.error_detail, u.error_context"
		" FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"
		" AS u(saga_id, owner, at, event, step, phase, attempt, role, reason,"
		" error, sqlstate, error_detail, error_context, name)"
		" LEFT JOIN pg_catalog.pg_authid r ON r.oid = u.role",
		14, {INT8ARRAYOID, OIDARRAYOID, TIMESTAMPTZARRAYOID, TEXTARRAYOID,
			TEXTARRAYOID, TEXTARRAYOID, INT4ARRAYOID, OIDARRAYOID, TEXTARRAYOID,
			TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID}
	};
	static const Oid types[] = {
		INT8OID, OIDOID, TIMESTAMPTZOID, TEXTOID, TEXTOID, TEXTOID, INT4OID,
		OIDOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID
	};
	Column		columns[lengthof(types)];
	Datum		values[lengthof(types)];
	QueryScope	scope;

	if (turn->nlog == 0)
		return;
	column_init(columns, lengthof(types), types, turn->nlog);
	for (int i = 0; i < turn->nlog; i++)
	{
		LogRow	   *row = &turn->log[i];

		columns[0].values[i] = Int64GetDatum(row->saga);
		columns[1].values[i] = ObjectIdGetDatum(row->owner);
		column_time(&columns[2], i, row->at);
		column_text(&columns[3], i, row->event);
		column_text(&columns[4], i, row->step);
		column_text(&columns[5], i, saga_phase_name(row->phase));
		columns[6].values[i] = Int32GetDatum(row->attempt);
		columns[6].nulls[i] = row->attempt == 0;
		columns[7].values[i] = ObjectIdGetDatum(row->role);
		column_text(&columns[8], i, row->reason);
		column_text(&columns[9], i, row->error);
		column_text(&columns[10], i, row->sqlstate);
		column_text(&columns[11], i, row->detail);
		column_text(&columns[12], i, row->context);
		column_text(&columns[13], i, row->name);
	}
	column_array(values, columns, lengthof(types), turn->nlog);
	query_begin(&scope);
	query_run(&insert, values, NULL, 0);
	query_end(&scope);
	turn->nlog = 0;
}

/*
 * Write back what has changed, with the log, in the open transaction.  Each
 * saga can be flushed once: its row then has another address.
 */
void
saga_flush(Turn *turn, Saga **sagas, int count)
{
	MemoryContext old = MemoryContextSwitchTo(turn->context);
	Saga	  **finished = palloc(sizeof(Saga *) * Max(count, 1));
	Saga	  **waiting = palloc(sizeof(Saga *) * Max(count, 1));
	int			nfinished = 0;
	int			nwaiting = 0;

	DEBUG_POINT("saga_before_flush");
	for (int i = 0; i < count; i++)
	{
		if (saga_status_is_final(sagas[i]->status) && !sagas[i]->parked)
			finished[nfinished++] = sagas[i];
		else if (sagas[i]->dirty)
			waiting[nwaiting++] = sagas[i];
	}
	if (nfinished > 0)
	{
		write_finished(finished, nfinished);
		saga_forget_waits(turn, finished, nfinished);
	}
	if (nwaiting > 0)
		write_waiting(turn, waiting, nwaiting);
	saga_write_waits(turn);
	saga_tell_parents(sagas, count);
	write_log(turn);
	MemoryContextSwitchTo(old);
	DEBUG_POINT("saga_after_flush");
}
