/*-------------------------------------------------------------------------
 *
 * event_stream.c
 *	  Streams: events of one thing, in versions without gaps.
 *
 * The version decides who was first: the primary key (stream, version) lets one of
 * those who append the same version in, and the others, who wait for its transaction,
 * get ZC003.  Appending writes nothing but the event, so a stream that many append to
 * has no row that all update.
 *
 * 1. Who gives an expected version takes a lock of the stream that others like him may
 *	  have too.  Who gives none takes one that is for one of his kind at a time, so that
 *	  he waits instead of failing; if one of the first kind is faster he tries again.
 * 2. A tombstone, and truncating, take a lock against both: what was begun before is
 *	  over, and what comes later reads the row of the stream under its own lock, as it is
 *	  then.
 * 3. Locks are of 64 bits of a hash of the name.  Streams that share them wait for each
 *	  other, and nothing worse.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"
#include "utils/uuid.h"

#include "base/access.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/debug_point.h"
#include "base/errors.h"
#include "base/installation.h"
#include "base/json.h"
#include "base/query.h"
#include "event/event_log.h"
#include "event/event_shared.h"

PG_FUNCTION_INFO_V1(coord_append);
PG_FUNCTION_INFO_V1(coord_append_many);
PG_FUNCTION_INFO_V1(coord_coordinate);
PG_FUNCTION_INFO_V1(coord_stream_version);
PG_FUNCTION_INFO_V1(coord_stream_truncate);
PG_FUNCTION_INFO_V1(coord_stream_tombstone);
PG_FUNCTION_INFO_V1(coord_internal_may_use_stream);

/* The last field of a lock's tag that stands for a stream. */
#define SPACE_STREAM 0x5200

#define ANY_VERSION (-1)

/* What is appended.  NULL: not given. */
typedef struct StreamEvent
{
	char	   *stream;
	char	   *type;
	Jsonb	   *data;
	Jsonb	   *metadata;
	pg_uuid_t  *event_id;
	pg_uuid_t  *correlation_id;
	char	   *coordination_id;
	char	   *step_id;
	int64		expected;		/* or ANY_VERSION */
} StreamEvent;

typedef struct StreamState
{
	bool		exists;
	Oid			owner;
	bool		tombstoned;
	char	   *reason;
	int64		version;
} StreamState;

/*
 * May the current user append to, and read, a stream of this owner?  A grant is for
 * streams of those who gave it; VISIBLE_STREAM in event_read.c says the same.
 */
static bool
may_use(const char *stream, Oid owner)
{
	static Statement grants = {
		"SELECT role, granted_by FROM coord_internal.use_grant WHERE kind = 'stream' AND starts_with($1, name)",
		1, {TEXTOID}
	};
	Oid			user = GetUserId();
	QueryScope	scope;
	Datum		value;
	uint64		rows;
	bool		found = false;

	if (access_may_act(owner, "stream", NULL))
		return true;
	if (installation_is_foreign())
		return false;
	query_begin(&scope);
	value = CStringGetTextDatum(stream);
	rows = query_run(&grants, &value, NULL, 0);
	for (uint64 i = 0; i < rows && !found; i++)
	{
		bool		isnull;

		Oid			role = DatumGetObjectId(query_value(i, 1, &isnull));
		Oid			grantor = DatumGetObjectId(query_value(i, 2, &isnull));

		found = is_member_of_role(user, role) &&
			(is_member_of_role(grantor, owner) || access_sees_all(grantor));
	}
	query_end(&scope);
	return found;
}

/* coord_internal.may_use_stream(name, owner), for the views */
Datum
coord_internal_may_use_stream(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(!PG_ARGISNULL(0) && !PG_ARGISNULL(1) &&
				   (access_sees_all(GetUserId()) ||
					has_privs_of_role(GetUserId(), ROLE_PG_MONITOR) ||
					may_use(text_to_cstring(PG_GETARG_TEXT_PP(0)), PG_GETARG_OID(1))));
}

static void
lock_stream(const char *stream, LOCKMODE mode)
{
	LOCKTAG		tag;
	uint64		hash = DatumGetUInt64(hash_any_extended((const unsigned char *) stream,
														strlen(stream), 0));

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) (hash >> 32), (uint32) hash, SPACE_STREAM);
	(void) LockAcquire(&tag, mode, false, false);
}

/* A stream as it is now, whatever snapshot the caller has. */
static StreamState
read_stream(const char *stream)
{
	static Statement read = {
		"SELECT s.owner, s.tombstoned_at IS NOT NULL, s.reason, coalesce((SELECT v.version"
		"  FROM coord_internal.stream_event v WHERE v.stream = s.stream ORDER BY v.version DESC LIMIT 1), 0)"
		" FROM coord_internal.stream s WHERE s.stream = $1",
		1, {TEXTOID}
	};
	StreamState state = {0};
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	Datum		value;
	bool		isnull;

	query_begin(&scope);
	value = CStringGetTextDatum(stream);
	state.exists = query_run_latest(&read, &value, NULL, 1) > 0;
	if (state.exists)
	{
		state.owner = DatumGetObjectId(query_value(0, 1, &isnull));
		state.tombstoned = DatumGetBool(query_value(0, 2, &isnull));
		state.reason = query_text(context, 0, 3);
		state.version = query_int8(0, 4);
	}
	query_end(&scope);
	return state;
}

/* Its owner is who appends first; somebody else may be faster. */
static void
make_stream(const char *stream)
{
	static Statement insert = {
		"INSERT INTO coord_internal.stream (stream, owner, created_at) VALUES ($1, $2, $3)"
		" ON CONFLICT (stream) DO NOTHING",
		3, {TEXTOID, OIDOID, TIMESTAMPTZOID}
	};
	Oid			user = GetUserId();
	QueryScope	scope;
	Datum		values[3];

	query_begin(&scope);
	values[0] = CStringGetTextDatum(stream);
	values[1] = ObjectIdGetDatum(user);
	values[2] = TimestampTzGetDatum(clock_now());
	query_run(&insert, values, NULL, 0);
	query_end(&scope);
	access_note_role(user);
}

static void
check_may_use(const char *stream, const StreamState *state)
{
	if (!may_use(stream, state->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for stream \"%s\"", stream),
				 errdetail("It is for members of its owner and of coord_admin."),
				 errhint("SELECT coord.grant_use('stream', prefix, role); lets others use it.")));
}

static void
wrong_version(const StreamEvent *event, int64 actual)
{
	ereport(ERROR,
			(errcode(ERRCODE_COORD_WRONG_VERSION),
			 errmsg("stream \"%s\" is not at version " INT64_FORMAT, event->stream, event->expected),
			 errdetail("It is at version " INT64_FORMAT ".", actual),
			 errhint("Read what came in between, and append again.")));
}

/* The version that this event has already; 0: none. */
static int64
version_of(const StreamEvent *event)
{
	static Statement read = {
		"SELECT version FROM coord_internal.stream_event WHERE stream = $1 AND event_id = $2",
		2, {TEXTOID, UUIDOID}
	};
	QueryScope	scope;
	Datum		values[2];
	int64		version = 0;

	if (event->event_id == NULL)
		return 0;
	query_begin(&scope);
	values[0] = CStringGetTextDatum(event->stream);
	values[1] = UUIDPGetDatum(event->event_id);
	if (query_run_latest(&read, values, NULL, 1) > 0)
		version = query_int8(0, 1);
	query_end(&scope);
	return version;
}

/* Insert a version; false when it, or the event's id, is there already. */
static bool
insert_version(const StreamEvent *event, int64 version)
{
	static Statement insert = {
		"INSERT INTO coord_internal.stream_event (pos, version, published_at, stream, type, data,"
		" metadata, event_id, coordination_id, step_id, correlation_id, causation_id)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT DO NOTHING",
		12, {INT8OID, INT8OID, TIMESTAMPTZOID, TEXTOID, TEXTOID, JSONBOID, JSONBOID, UUIDOID,
		TEXTOID, TEXTOID, UUIDOID, UUIDOID}
	};
	QueryScope	scope;
	Datum		values[12];
	bool		nulls[12] = {false};
	uint64		rows;

	event_publisher_enter();
	query_begin(&scope);
	values[0] = Int64GetDatum(event_position_next());
	values[1] = Int64GetDatum(version);
	values[2] = TimestampTzGetDatum(clock_now());
	values[3] = CStringGetTextDatum(event->stream);
	values[4] = CStringGetTextDatum(event->type);
	values[5] = JsonbPGetDatum(event->data);
	nulls[6] = event->metadata == NULL;
	values[6] = PointerGetDatum(event->metadata);
	nulls[7] = event->event_id == NULL;
	values[7] = UUIDPGetDatum(event->event_id);
	nulls[8] = event->coordination_id == NULL;
	if (!nulls[8])
		values[8] = CStringGetTextDatum(event->coordination_id);
	nulls[9] = event->step_id == NULL;
	if (!nulls[9])
		values[9] = CStringGetTextDatum(event->step_id);
	nulls[10] = event->correlation_id == NULL;
	values[10] = UUIDPGetDatum(event->correlation_id);
	nulls[11] = event_cause == NULL;
	values[11] = UUIDPGetDatum(event_cause);
	rows = query_run(&insert, values, nulls, 0);
	query_end(&scope);
	return rows > 0;
}

/*
 * Append one event; returns its version, or that of the first one with its id.  Locks
 * the stream until the end of the transaction.
 */
static int64
append(const StreamEvent *event)
{
	StreamState state;

	lock_stream(event->stream, event->expected == ANY_VERSION ? ShareUpdateExclusiveLock : RowExclusiveLock);
	DEBUG_POINT("event_stream_locked");
	for (;;)
	{
		int64		version;

		CHECK_FOR_INTERRUPTS();
		state = read_stream(event->stream);
		if (state.exists)
		{
			check_may_use(event->stream, &state);
			if (state.tombstoned)
				ereport(ERROR,
						(errcode(ERRCODE_COORD_TOMBSTONED),
						 errmsg("stream \"%s\" has ended", event->stream),
						 state.reason ? errdetail("Reason: %s", state.reason) : 0,
						 errhint("Nothing can be appended after coord.stream_tombstone().")));
			version = version_of(event);
			if (version != 0)
				return version;
		}
		if (event->expected != ANY_VERSION && state.version != event->expected)
			wrong_version(event, state.version);
		if (!state.exists)
		{
			make_stream(event->stream);
			state = read_stream(event->stream);
			if (!state.exists || state.version != 0)
				continue;
			check_may_use(event->stream, &state);
		}
		DEBUG_POINT("event_version_read");
		if (insert_version(event, state.version + 1))
			return state.version + 1;
	}
}

/* ----------------------------------------------------------------
 *		Arguments
 * ----------------------------------------------------------------
 */

static char *
get_stream(FunctionCallInfo fcinfo)
{
	char	   *stream = check_text(fcinfo, 0, "stream");

	check_name("stream", stream);
	return stream;
}

static int64
get_expected(FunctionCallInfo fcinfo, int argument)
{
	int64		expected;

	if (PG_ARGISNULL(argument))
		return ANY_VERSION;
	expected = PG_GETARG_INT64(argument);
	if (expected < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("expected_version must not be negative"),
				 errhint("0 means that the stream must not exist, null that any version will do.")));
	return expected;
}

/* coord.append(stream, type, data, expected_version, ...) */
Datum
coord_append(PG_FUNCTION_ARGS)
{
	StreamEvent event = {0};

	event.stream = get_stream(fcinfo);
	event.type = check_text(fcinfo, 1, "type");
	event_check_type(event.type);
	check_required(fcinfo, 2, "data");
	event.data = PG_GETARG_JSONB_P(2);
	event.expected = get_expected(fcinfo, 3);
	event.metadata = PG_ARGISNULL(4) ? NULL : PG_GETARG_JSONB_P(4);
	event.event_id = PG_ARGISNULL(5) ? NULL : PG_GETARG_UUID_P(5);
	event.correlation_id = PG_ARGISNULL(6) ? event_default_correlation() : PG_GETARG_UUID_P(6);
	event.coordination_id = check_optional_text(fcinfo, 7);
	event.step_id = check_optional_text(fcinfo, 8);
	if (event.coordination_id != NULL)
		check_name("coordination_id", event.coordination_id);
	installation_check();
	check_not_in_recovery("coord.append()");
	PG_RETURN_INT64(append(&event));
}

/* One event of an array; "n" counts from 1. */
static void
read_event(StreamEvent *event, JsonbValue *value, int n, bool coordinated)
{
	Jsonb	   *object = JsonbValueToJsonb(value);
	JsonbValue	member;
	char	   *id;

	if (!json_is_object(object))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("event %d must be a JSON object", n)));
	event->type = json_get_text(object, "type");
	if (event->type == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("event %d has no type", n)));
	event_check_type(event->type);
	if (json_get(object, "data", &member) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("event %d has no data", n)));
	event->data = JsonbValueToJsonb(&member);
	event->metadata = json_get(object, "metadata", &member) != NULL && member.type != jbvNull ?
		JsonbValueToJsonb(&member) : NULL;
	id = json_get_text(object, "event_id");
	event->event_id = id == NULL ? NULL :
		DatumGetUUIDP(DirectFunctionCall1(uuid_in, CStringGetDatum(id)));
	if (!coordinated)
		return;
	event->stream = json_get_text(object, "stream");
	if (event->stream == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("event %d has no stream", n)));
	check_name("stream", event->stream);
	event->step_id = json_get_text(object, "step_id");
	event->expected = ANY_VERSION;
	if (json_get(object, "expected_version", &member) != NULL && member.type != jbvNull)
	{
		if (member.type != jbvNumeric)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("expected_version of event %d must be a number", n)));
		event->expected = DatumGetInt64(DirectFunctionCall1(numeric_int8,
															NumericGetDatum(member.val.numeric)));
		if (event->expected < 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("expected_version of event %d must not be negative", n)));
	}
}

/* The events of a JSON array. */
static StreamEvent *
read_events(Jsonb *array, int *count, bool coordinated)
{
	StreamEvent *events;
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	int			n = 0;

	if (!JB_ROOT_IS_ARRAY(array) || JB_ROOT_IS_SCALAR(array))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("events must be a JSON array")));
	events = palloc0(sizeof(StreamEvent) * Max(JB_ROOT_COUNT(array), 1));
	iterator = JsonbIteratorInit(&array->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token != WJB_ELEM)
			continue;
		read_event(&events[n], &value, n + 1, coordinated);
		events[n++].correlation_id = event_default_correlation();
	}
	*count = n;
	return events;
}

/* coord.append_many(stream, events, expected_version) */
Datum
coord_append_many(PG_FUNCTION_ARGS)
{
	char	   *stream = get_stream(fcinfo);
	int64		expected = get_expected(fcinfo, 2);
	StreamEvent *events;
	int64		version = 0;
	int			count;

	check_required(fcinfo, 1, "events");
	events = read_events(PG_GETARG_JSONB_P(1), &count, false);
	installation_check();
	check_not_in_recovery("coord.append_many()");
	for (int i = 0; i < count; i++)
	{
		events[i].stream = stream;
		events[i].expected = i == 0 || expected == ANY_VERSION ? expected : version;
		version = append(&events[i]);
	}
	if (count == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT64(version);
}

static int
compare_streams(const void *a, const void *b)
{
	return strcmp(*(char *const *) a, *(char *const *) b);
}

/*
 * coord.coordinate(coordination_id, events).  All streams are locked first, in order of
 * their names, so that two who coordinate the same do not wait for each other.
 */
Datum
coord_coordinate(PG_FUNCTION_ARGS)
{
	char	   *coordination_id = check_text(fcinfo, 0, "coordination_id");
	StreamEvent *events;
	char	  **streams;
	int			count;

	check_name("coordination_id", coordination_id);
	check_required(fcinfo, 1, "events");
	events = read_events(PG_GETARG_JSONB_P(1), &count, true);
	installation_check();
	check_not_in_recovery("coord.coordinate()");
	streams = palloc(sizeof(char *) * Max(count, 1));
	for (int i = 0; i < count; i++)
		streams[i] = events[i].stream;
	qsort(streams, count, sizeof(char *), compare_streams);
	for (int i = 0; i < count; i++)
		lock_stream(streams[i], ShareUpdateExclusiveLock);
	for (int i = 0; i < count; i++)
	{
		events[i].coordination_id = coordination_id;
		(void) append(&events[i]);
	}
	if (count == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT64(event_own_position());
}

/* coord.stream_version(stream) */
Datum
coord_stream_version(PG_FUNCTION_ARGS)
{
	char	   *stream = get_stream(fcinfo);
	StreamState state;

	installation_check();
	state = read_stream(stream);
	PG_RETURN_INT64(state.exists && may_use(stream, state.owner) ? state.version : 0);
}

/* The stream, locked against everybody who appends; 42704 unless the caller rules it. */
static StreamState
lock_own_stream(const char *stream)
{
	StreamState state;

	installation_check();
	check_not_in_recovery("a stream");
	lock_stream(stream, ExclusiveLock);
	state = read_stream(stream);
	if (!state.exists || !may_use(stream, state.owner))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("stream \"%s\" does not exist", stream)));
	if (!access_may_act(state.owner, "stream", NULL))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for stream \"%s\"", stream),
				 errdetail("It is for members of its owner and of coord_admin; coord.grant_use() allows to append and to read.")));
	return state;
}

/* coord.stream_truncate(stream, before_version): the last event stays in any case. */
Datum
coord_stream_truncate(PG_FUNCTION_ARGS)
{
	static Statement remove = {
		"DELETE FROM coord_internal.stream_event WHERE stream = $1 AND version < $2",
		2, {TEXTOID, INT8OID}
	};
	static Statement note = {
		"UPDATE coord_internal.stream SET truncated_before = greatest(truncated_before, $2) WHERE stream = $1",
		2, {TEXTOID, INT8OID}
	};
	char	   *stream = get_stream(fcinfo);
	StreamState state;
	QueryScope	scope;
	Datum		values[2];
	uint64		rows;

	check_required(fcinfo, 1, "before_version");
	state = lock_own_stream(stream);
	query_begin(&scope);
	values[0] = CStringGetTextDatum(stream);
	values[1] = Int64GetDatum(Min(PG_GETARG_INT64(1), state.version));
	rows = query_run(&remove, values, NULL, 0);
	if (rows > 0)
		query_run(&note, values, NULL, 0);
	query_end(&scope);
	PG_RETURN_INT64((int64) rows);
}

/* coord.stream_tombstone(stream, reason) */
Datum
coord_stream_tombstone(PG_FUNCTION_ARGS)
{
	static Statement note = {
		"UPDATE coord_internal.stream SET tombstoned_at = $2, tombstoned_by = $3, reason = $4 WHERE stream = $1",
		4, {TEXTOID, TIMESTAMPTZOID, OIDOID, TEXTOID}
	};
	char	   *stream = get_stream(fcinfo);
	char	   *reason = check_optional_text(fcinfo, 1);
	Oid			user = GetUserId();
	StreamState state = lock_own_stream(stream);
	QueryScope	scope;
	Datum		values[4];
	bool		nulls[4] = {false, false, false, reason == NULL};

	if (state.tombstoned)
		PG_RETURN_BOOL(false);
	query_begin(&scope);
	values[0] = CStringGetTextDatum(stream);
	values[1] = TimestampTzGetDatum(clock_now());
	values[2] = ObjectIdGetDatum(user);
	if (reason != NULL)
		values[3] = CStringGetTextDatum(reason);
	query_run(&note, values, nulls, 0);
	query_end(&scope);
	PG_RETURN_BOOL(true);
}
