/*-------------------------------------------------------------------------
 *
 * subscription_store.c
 *	  A subscription in its tables: the cursor, events that are read, and events
 *	  that were put aside.
 *
 * What is before the cursor is done, but for the events in subscription_event,
 * which carry the event with them: the log need not keep it for them.  Whoever moves
 * the cursor or puts events aside holds the lock of the subscription until the end of
 * his transaction.
 *
 * Of events with a key that were put aside the first one is due, parked or in a
 * consumer's hand, and the others wait behind it with neither time nor token.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "storage/lock.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "base/access.h"
#include "base/clock.h"
#include "base/json_path.h"
#include "base/query.h"
#include "event/event.h"
#include "event/event_read.h"
#include "event/event_shared.h"
#include "event/subscription.h"

/* The last field of a lock's tag that stands for a subscription. */
#define SPACE_SUBSCRIPTION 0x5300

#define COLUMNS \
	"s.id, s.name, s.owner, s.search_path, s.types, s.streams, s.handler, s.takes_event, s.emits," \
	" s.filter, s.batch, s.batch_size, s.max_attempts, s.on_error, s.paused_at IS NOT NULL," \
	" s.problem IS NOT NULL, coalesce(c.move, 0), coalesce(c.position, 0)" \
	" FROM coord_internal.subscription s LEFT JOIN LATERAL (SELECT k.move, k.position" \
	"  FROM coord_internal.subscription_cursor k WHERE k.subscription = s.id ORDER BY k.move DESC LIMIT 1) c ON true"

/* The row of the last statement, in "context". */
static Subscription *
read_row(MemoryContext context)
{
	Subscription *result = MemoryContextAllocZero(context, sizeof(Subscription));
	char	   *on_error = query_text(context, 0, 14);
	Datum		value;
	bool		isnull;

	result->id = query_int8(0, 1);
	result->name = query_text(context, 0, 2);
	result->owner = DatumGetObjectId(query_value(0, 3, &isnull));
	result->search_path = query_text(context, 0, 4);
	result->types = query_copy(context, 0, 5, &isnull);
	result->streams = query_copy(context, 0, 6, &isnull);
	if (isnull)
		result->streams = (Datum) 0;
	result->handler = query_text(context, 0, 7);
	result->takes_event = DatumGetBool(query_value(0, 8, &isnull));
	result->emits = query_text(context, 0, 9);
	value = query_copy(context, 0, 10, &isnull);
	result->filter = isnull ? NULL : DatumGetJsonPathP(value);
	result->batch = DatumGetBool(query_value(0, 11, &isnull));
	result->batch_size = query_int4(0, 12);
	result->max_attempts = query_int4(0, 13);
	result->on_error = strcmp(on_error, "stop") == 0 ? ON_ERROR_STOP :
		strcmp(on_error, "park_event") == 0 ? ON_ERROR_PARK_EVENT : ON_ERROR_PARK_KEY;
	result->paused = DatumGetBool(query_value(0, 15, &isnull));
	result->problem = DatumGetBool(query_value(0, 16, &isnull));
	result->move = query_int8(0, 17);
	result->position = query_int8(0, 18);
	return result;
}

static Subscription *
load(Statement *statement, Datum value, bool by_name)
{
	MemoryContext context = CurrentMemoryContext;
	Subscription *result = NULL;
	QueryScope	scope;

	query_begin(&scope);
	if (by_name)
		value = CStringGetTextDatum(DatumGetCString(value));
	if (query_run_latest(statement, &value, NULL, 1) > 0)
		result = read_row(context);
	query_end(&scope);
	return result;
}

/* As it is now, whatever snapshot the caller has; NULL: there is none. */
Subscription *
subscription_load(int64 id)
{
	static Statement read = {
		"SELECT " COLUMNS " WHERE s.id = $1", 1, {INT8OID}
	};

	return load(&read, Int64GetDatum(id), false);
}

Subscription *
subscription_by_name(const char *name)
{
	static Statement read = {
		"SELECT " COLUMNS " WHERE s.name = $1", 1, {TEXTOID}
	};

	return load(&read, CStringGetDatum(name), true);
}

static void
subscription_tag(LOCKTAG *tag, int64 id)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, (uint32) ((uint64) id >> 32), (uint32) id,
						 SPACE_SUBSCRIPTION);
}

/* Lock it until the end of the transaction; false, without "wait", when somebody has it. */
bool
subscription_lock(int64 id, bool wait)
{
	LOCKTAG		tag;

	subscription_tag(&tag, id);
	return LockAcquire(&tag, ExclusiveLock, false, !wait) != LOCKACQUIRE_NOT_AVAIL;
}

/* Who has it locked: a list that ends with an invalid one. */
VirtualTransactionId *
subscription_holders(int64 id)
{
	LOCKTAG		tag;
	int			count;

	subscription_tag(&tag, id);
	return GetLockConflicts(&tag, ExclusiveLock, &count);
}

/* Give the lock back, of a transaction that has written nothing under it. */
void
subscription_unlock(int64 id)
{
	LOCKTAG		tag;

	subscription_tag(&tag, id);
	(void) LockRelease(&tag, ExclusiveLock, false);
}

/* Move the cursor.  The lock is held. */
void
subscription_move(Subscription *subscription, int64 position)
{
	static Statement insert = {
		"INSERT INTO coord_internal.subscription_cursor (subscription, move, position, moved_at)"
		" VALUES ($1, $2, $3, $4)",
		4, {INT8OID, INT8OID, INT8OID, TIMESTAMPTZOID}
	};
	QueryScope	scope;
	Datum		values[4];

	query_begin(&scope);
	values[0] = Int64GetDatum(subscription->id);
	values[1] = Int64GetDatum(++subscription->move);
	values[2] = Int64GetDatum(position);
	values[3] = TimestampTzGetDatum(clock_now());
	query_run(&insert, values, NULL, 0);
	query_end(&scope);
	subscription->position = position;
}

Oid
event_row_type(void)
{
	Oid			type = GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid, CStringGetDatum("event"),
									   ObjectIdGetDatum(get_namespace_oid("coord", false)));

	if (!OidIsValid(type))
		elog(ERROR, "type coord.event is missing");
	return type;
}

/* A column of an event, counted from 1. */
Datum
event_field(const Event *event, int column, bool *isnull)
{
	return GetAttributeByNum(DatumGetHeapTupleHeader(event->row), column, isnull);
}

/* An event as an object. */
Jsonb *
event_document(const Event *event)
{
	FmgrInfo	flinfo;
	List	   *arguments = list_make1(makeNullConst(event_row_type(), -1, InvalidOid));

	fmgr_info(F_TO_JSONB, &flinfo);
	fmgr_info_set_expr((Node *) makeFuncExpr(F_TO_JSONB, JSONBOID, arguments, InvalidOid, InvalidOid,
											 COERCE_EXPLICIT_CALL), &flinfo);
	return DatumGetJsonbP(FunctionCall1(&flinfo, event->row));
}

/* One event of the last statement: its row in a column; in "context". */
static void
copy_event(MemoryContext context, uint64 row, int column, Event *event)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	bool		isnull;
	Datum		field;

	event->row = query_copy(context, row, column, &isnull);
	event->pos = DatumGetInt64(event_field(event, 1, &isnull));
	field = event_field(event, 5, &isnull);
	if (isnull)
		field = event_field(event, 2, &isnull);
	event->key = isnull ? NULL : TextDatumGetCString(field);
	event->attempts = 0;
	MemoryContextSwitchTo(old);
}

/*
 * Events after a position up to the horizon (or a position below it) that the
 * subscription wants and its owner may see, at most "max".  The caller has read the
 * horizon before.  "reached" is set to where the reading ended: at "upto", or before it
 * when there may be more.
 */
int
subscription_read(const Subscription *subscription, int64 after, int64 upto, int max,
				  Event **events, int64 *reached)
{
	static Statement read = {
		"SELECT ROW(u.*)::coord.event FROM ("
		" (SELECT e.pos, NULL::text, NULL::bigint, e.type, e.key, e.data, e.metadata, e.event_id,"
		"  NULL::text, NULL::text, e.correlation_id, e.causation_id, e.published_at"
		"  FROM coord_internal.event_log e WHERE e.pos > $1 AND e.pos <= $2 AND $9"
		"  AND ($4 OR e.type = ANY ($5) OR EXISTS (SELECT FROM unnest($6) p WHERE starts_with(e.type, p)))"
		"  ORDER BY e.pos LIMIT $3)"
		" UNION ALL"
		" (SELECT " EVENT_OF_STREAM
		"  FROM coord_internal.stream_event v" VISIBLE_STREAM("$7", "$8") " WHERE v.pos > $1 AND v.pos <= $2"
		"  AND ($4 OR v.type = ANY ($5) OR EXISTS (SELECT FROM unnest($6) p WHERE starts_with(v.type, p)))"
		"  AND ($9 OR $10 OR v.stream = ANY ($11) OR EXISTS (SELECT FROM unnest($12) p WHERE starts_with(v.stream, p)))"
		"  ORDER BY v.pos LIMIT $3)"
		" ORDER BY 1 LIMIT $3) AS u"
		" (pos, stream, version, type, key, data, metadata, event_id, coordination_id, step_id,"
		"  correlation_id, causation_id, published_at) ORDER BY u.pos",
		12, {INT8OID, INT8OID, INT8OID, BOOLOID, TEXTARRAYOID, TEXTARRAYOID, OIDOID, BOOLOID, BOOLOID,
		BOOLOID, TEXTARRAYOID, TEXTARRAYOID}
	};
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	Datum		values[12];
	bool		nulls[12] = {false};
	bool		all;
	bool		all_streams = true;
	uint64		rows;
	int			count = 0;

	event_read_patterns("types", subscription->types, &values[4], &values[5], &all);
	if (subscription->streams != (Datum) 0)
		event_read_patterns("streams", subscription->streams, &values[10], &values[11], &all_streams);
	else
		nulls[10] = nulls[11] = true;
	values[0] = Int64GetDatum(after);
	values[1] = Int64GetDatum(upto);
	values[2] = Int64GetDatum(max);
	values[3] = BoolGetDatum(all);
	values[6] = ObjectIdGetDatum(subscription->owner);
	values[7] = BoolGetDatum(access_sees_all(subscription->owner));
	values[8] = BoolGetDatum(subscription->streams == (Datum) 0);
	values[9] = BoolGetDatum(all_streams);
	query_begin(&scope);
	rows = query_run_latest(&read, values, nulls, 0);
	*events = MemoryContextAlloc(context, sizeof(Event) * Max(rows, 1));
	for (uint64 i = 0; i < rows; i++)
		copy_event(context, i, 1, &(*events)[i]);
	query_end(&scope);
	*reached = rows == max ? (*events)[rows - 1].pos : upto;
	for (uint64 i = 0; i < rows; i++)
	{
		if (subscription->filter == NULL ||
			json_path_holds(subscription->filter, event_document(&(*events)[i])))
			(*events)[count++] = (*events)[i];
	}
	return count;
}

/* ----------------------------------------------------------------
 *		Events that were put aside
 * ----------------------------------------------------------------
 */

/*
 * Events by a statement that returns them with their attempts; as they are now, or in
 * the snapshot of the caller.
 */
int
subscription_read_items(Statement *statement, Datum *values, bool latest, Event **events)
{
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	uint64		rows;

	query_begin(&scope);
	rows = latest ? query_run_latest(statement, values, NULL, 0) : query_run(statement, values, NULL, 0);
	*events = MemoryContextAlloc(context, sizeof(Event) * Max(rows, 1));
	for (uint64 i = 0; i < rows; i++)
	{
		copy_event(context, i, 1, &(*events)[i]);
		(*events)[i].attempts = query_int4(i, 2);
	}
	query_end(&scope);
	return (int) rows;
}

static int
compare_positions(const void *a, const void *b)
{
	int64		left = ((const Event *) a)->pos;
	int64		right = ((const Event *) b)->pos;

	return left < right ? -1 : left > right;
}

/*
 * Add to events that are due those that wait behind them, so that one who failed does
 * not slow his key down for long.  Of each key these are the next ones.
 */
static int
add_waiting(const Subscription *subscription, Event **events, int count, int max)
{
	static Statement read = {
		"SELECT event, attempts FROM coord_internal.subscription_event"
		" WHERE subscription = $1 AND key = ANY ($2) AND due_at IS NULL AND parked_at IS NULL AND token IS NULL"
		" ORDER BY pos LIMIT $3",
		3, {INT8OID, TEXTARRAYOID, INT8OID}
	};
	Datum	   *keys = palloc(sizeof(Datum) * Max(count, 1));
	Datum		values[3];
	Event	   *waiting;
	int			nkeys = 0;
	int			nwaiting;

	for (int i = 0; i < count; i++)
	{
		if ((*events)[i].key != NULL)
			keys[nkeys++] = CStringGetTextDatum((*events)[i].key);
	}
	if (nkeys == 0 || count == max)
		return count;
	values[0] = Int64GetDatum(subscription->id);
	values[1] = PointerGetDatum(construct_array(keys, nkeys, TEXTOID, -1, false, TYPALIGN_INT));
	values[2] = Int64GetDatum(max - count);
	nwaiting = subscription_read_items(&read, values, true, &waiting);
	*events = repalloc(*events, sizeof(Event) * (count + nwaiting));
	memcpy(*events + count, waiting, sizeof(Event) * nwaiting);
	qsort(*events, count + nwaiting, sizeof(Event), compare_positions);
	return count + nwaiting;
}

/*
 * Those that are due, at most "max", and with them what waits behind them, in order;
 * where everything waits behind one that has failed, only the first.
 */
int
subscription_items(const Subscription *subscription, int max, Event **events)
{
	static Statement read = {
		"SELECT i.event, i.attempts FROM coord_internal.subscription_event i"
		" WHERE i.subscription = $1 AND i.due_at <= $2 AND (NOT $4 OR NOT EXISTS"
		"  (SELECT FROM coord_internal.subscription_event j WHERE j.subscription = $1 AND j.pos < i.pos))"
		" ORDER BY i.pos LIMIT $3",
		4, {INT8OID, TIMESTAMPTZOID, INT8OID, BOOLOID}
	};
	Datum		values[4];
	int			count;

	values[0] = Int64GetDatum(subscription->id);
	values[1] = TimestampTzGetDatum(clock_now());
	values[2] = Int64GetDatum(max);
	values[3] = BoolGetDatum(subscription->on_error == ON_ERROR_STOP);
	count = subscription_read_items(&read, values, true, events);
	if (subscription->on_error != ON_ERROR_PARK_KEY)
		return count;
	return add_waiting(subscription, events, count, max);
}

static bool
exists(Statement *statement, const Subscription *subscription, const char *key)
{
	QueryScope	scope;
	Datum		values[2];
	bool		found;

	query_begin(&scope);
	values[0] = Int64GetDatum(subscription->id);
	values[1] = key != NULL ? CStringGetTextDatum(key) : (Datum) 0;
	found = query_run_latest(statement, values, NULL, 1) > 0;
	query_end(&scope);
	return found;
}

bool
subscription_has_items(const Subscription *subscription)
{
	static Statement read = {
		"SELECT FROM coord_internal.subscription_event WHERE subscription = $1", 1, {INT8OID}
	};

	return exists(&read, subscription, NULL);
}

/* Was one of this key put aside? */
bool
subscription_key_is_blocked(const Subscription *subscription, const char *key)
{
	static Statement read = {
		"SELECT FROM coord_internal.subscription_event WHERE subscription = $1 AND key = $2",
		2, {INT8OID, TEXTOID}
	};

	return exists(&read, subscription, key);
}

/* The third argument is a coord.event, which is another type after CREATE EXTENSION. */
static void
take_event_type(Statement *statement)
{
	Oid			type = event_row_type();

	if (statement->argtypes[2] == type)
		return;
	if (statement->plan != NULL)
		SPI_freeplan(statement->plan);
	statement->plan = NULL;
	statement->argtypes[2] = type;
}

/*
 * Put an event aside that the cursor passes over: to be tried at once, or to wait
 * behind another one of its key.
 */
void
subscription_put_aside(const Subscription *subscription, const Event *event, bool due)
{
	static Statement insert = {
		"INSERT INTO coord_internal.subscription_event (subscription, pos, key, event, due_at)"
		" VALUES ($1, ($3).pos, $2, $3, $4)",
		4, {INT8OID, TEXTOID, InvalidOid, TIMESTAMPTZOID}
	};
	QueryScope	scope;
	Datum		values[4];
	bool		nulls[4] = {false};

	take_event_type(&insert);
	query_begin(&scope);
	values[0] = Int64GetDatum(subscription->id);
	nulls[1] = event->key == NULL;
	values[1] = nulls[1] ? (Datum) 0 : CStringGetTextDatum(event->key);
	values[2] = event->row;
	nulls[3] = !due;
	values[3] = TimestampTzGetDatum(clock_now());
	query_run(&insert, values, nulls, 0);
	query_end(&scope);
}

/* An event that was put aside is done: the next one of its key may be tried. */
void
subscription_item_done(const Subscription *subscription, int64 pos)
{
	static Statement delete = {
		"DELETE FROM coord_internal.subscription_event WHERE subscription = $1 AND pos = $2 RETURNING key",
		2, {INT8OID, INT8OID}
	};
	static Statement next = {
		"UPDATE coord_internal.subscription_event SET due_at = $3 WHERE subscription = $1 AND pos ="
		" (SELECT min(pos) FROM coord_internal.subscription_event WHERE subscription = $1 AND key = $2)"
		" AND parked_at IS NULL AND token IS NULL AND due_at IS NULL",
		3, {INT8OID, TEXTOID, TIMESTAMPTZOID}
	};
	QueryScope	scope;
	Datum		values[3];
	bool		isnull = true;
	Datum		key = (Datum) 0;

	query_begin(&scope);
	values[0] = Int64GetDatum(subscription->id);
	values[1] = Int64GetDatum(pos);
	if (query_run(&delete, values, NULL, 0) > 0)
		key = query_copy(CurrentMemoryContext, 0, 1, &isnull);
	if (!isnull)
	{
		values[1] = key;
		values[2] = TimestampTzGetDatum(clock_now());
		query_run(&next, values, NULL, 0);
	}
	query_end(&scope);
}

/*
 * An attempt has failed, of an event that was put aside or of one that the cursor
 * passes over now.  "attempts" counts this one.  It is tried again at "due_at"; 0: it is
 * parked.
 */
void
subscription_item_failed(const Subscription *subscription, const Event *event, int attempts,
						 TimestampTz due_at, const char *sqlstate, const char *message)
{
	static Statement upsert = {
		"INSERT INTO coord_internal.subscription_event AS i (subscription, pos, key, event, attempts, due_at,"
		"  parked_at, failed_at, sqlstate, error)"
		" VALUES ($1, ($3).pos, $2, $3, $4, $5, CASE WHEN $5 IS NULL THEN $6 END, $6, $7, $8)"
		" ON CONFLICT (subscription, pos) DO UPDATE SET attempts = $4, due_at = $5, token = NULL,"
		"  parked_at = CASE WHEN $5 IS NULL THEN $6 END, failed_at = $6, sqlstate = $7, error = $8",
		8, {INT8OID, TEXTOID, InvalidOid, INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, TEXTOID}
	};
	QueryScope	scope;
	Datum		values[8];
	bool		nulls[8] = {false};

	take_event_type(&upsert);
	query_begin(&scope);
	values[0] = Int64GetDatum(subscription->id);
	nulls[1] = event->key == NULL;
	values[1] = nulls[1] ? (Datum) 0 : CStringGetTextDatum(event->key);
	values[2] = event->row;
	values[3] = Int32GetDatum(attempts);
	nulls[4] = due_at == 0;
	values[4] = TimestampTzGetDatum(due_at);
	values[5] = TimestampTzGetDatum(clock_now());
	nulls[6] = sqlstate == NULL;
	values[6] = nulls[6] ? (Datum) 0 : CStringGetTextDatum(sqlstate);
	nulls[7] = message == NULL;
	values[7] = nulls[7] ? (Datum) 0 : CStringGetTextDatum(message);
	query_run(&upsert, values, nulls, 0);
	query_end(&scope);
}

/* An event that waited behind another of its key does no more. */
void
subscription_item_due(const Subscription *subscription, int64 pos)
{
	static Statement update = {
		"UPDATE coord_internal.subscription_event SET due_at = $3 WHERE subscription = $1 AND pos = $2",
		3, {INT8OID, INT8OID, TIMESTAMPTZOID}
	};
	QueryScope	scope;
	Datum		values[3];

	query_begin(&scope);
	values[0] = Int64GetDatum(subscription->id);
	values[1] = Int64GetDatum(pos);
	values[2] = TimestampTzGetDatum(clock_now());
	query_run(&update, values, NULL, 0);
	query_end(&scope);
}

/* Of events of one key that are due all but the first wait. */
void
subscription_order_keys(const Subscription *subscription)
{
	static Statement update = {
		"UPDATE coord_internal.subscription_event i SET due_at = NULL"
		" WHERE i.subscription = $1 AND i.due_at IS NOT NULL AND EXISTS"
		"  (SELECT FROM coord_internal.subscription_event j"
		"   WHERE j.subscription = $1 AND j.key = i.key AND j.pos < i.pos)",
		1, {INT8OID}
	};
	QueryScope	scope;
	Datum		value = Int64GetDatum(subscription->id);

	query_begin(&scope);
	query_run(&update, &value, NULL, 0);
	query_end(&scope);
}

/* When the first event that was put aside is due; 0: never. */
TimestampTz
subscription_next_due(int64 id)
{
	static Statement read = {
		"SELECT min(due_at) FROM coord_internal.subscription_event WHERE subscription = $1",
		1, {INT8OID}
	};
	QueryScope	scope;
	Datum		value = Int64GetDatum(id);
	TimestampTz result;

	query_begin(&scope);
	query_run_latest(&read, &value, NULL, 1);
	result = query_time(0, 1);
	query_end(&scope);
	return result;
}

/* Moves of cursors that do not count any more go. */
void
subscription_housekeeping(void)
{
	static Statement delete = {
		"DELETE FROM coord_internal.subscription_cursor c USING coord_internal.subscription s"
		" WHERE c.subscription = s.id AND c.move < (SELECT max(k.move)"
		"  FROM coord_internal.subscription_cursor k WHERE k.subscription = s.id)",
		0, {0}
	};
	QueryScope	scope;

	query_begin(&scope);
	query_run(&delete, NULL, NULL, 0);
	query_end(&scope);
}
