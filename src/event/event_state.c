/*-------------------------------------------------------------------------
 *
 * event_state.c
 *	  The state of a stream: its events folded by a reducer, from a snapshot on.
 *
 * A reducer is f(state jsonb, event jsonb) RETURNS jsonb, of the caller's choice, and is
 * called as the caller.  A snapshot is found by the stream, a hash of the reducer's
 * source, name and settings, and of the initial state: a reducer that was corrected, or
 * another beginning, does not read what came of the old one.  What functions it calls in
 * turn is not in the hash.
 *
 * Who may make a snapshot could make a false one, with a reducer that goes by a setting.
 * So that is for members of the stream's owner, who may append what they like anyway.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "parser/parse_func.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"

#include "base/access.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/compat.h"
#include "base/installation.h"
#include "base/query.h"
#include "event/event_read.h"
#include "event/subscription.h"

PG_FUNCTION_INFO_V1(coord_stream_load);
PG_FUNCTION_INFO_V1(coord_stream_snapshot);

/* Events that are in memory at a time. */
#define CHUNK 500

/* Snapshots of a stream and reducer that are kept. */
#define KEPT 2

typedef struct Fold
{
	char	   *stream;
	Oid			owner;			/* InvalidOid: no such stream, or not for the caller */
	int64		truncated_before;
	FmgrInfo	reducer;
	char	   *reducer_name;
	int64		hash;
	Jsonb	   *state;
	int64		version;
	int64		pos;			/* 0: no event yet */
} Fold;

/* What a later version of the same reducer would differ in. */
static int64
hash_reducer(Oid function, Jsonb *initial)
{
	static const AttrNumber columns[] = {Anum_pg_proc_prosrc, Anum_pg_proc_probin, Anum_pg_proc_prosqlbody};
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Form_pg_proc proc;
	uint64		hash;
	char	   *name;
	char	   *language;
	bool		isnull;
	Datum		value;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	name = quote_qualified_identifier(get_namespace_name(proc->pronamespace), NameStr(proc->proname));
	hash = DatumGetUInt64(hash_any_extended((unsigned char *) name, strlen(name), 0));
	language = get_language_name(proc->prolang, false);
	hash = DatumGetUInt64(hash_any_extended((unsigned char *) language, strlen(language), hash));
	for (int i = 0; i < lengthof(columns); i++)
	{
		char	   *source;

		value = SysCacheGetAttr(PROCOID, tuple, columns[i], &isnull);
		if (isnull)
			continue;
		source = TextDatumGetCString(value);
		hash = DatumGetUInt64(hash_any_extended((unsigned char *) source, strlen(source), hash));
	}
	value = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_proconfig, &isnull);
	if (!isnull)
	{
		ArrayType  *settings = DatumGetArrayTypePCopy(value);

		hash = DatumGetUInt64(hash_any_extended((unsigned char *) settings, VARSIZE(settings), hash));
	}
	ReleaseSysCache(tuple);
	return (int64) DatumGetUInt64(hash_any_extended((unsigned char *) initial, VARSIZE(initial), hash));
}

static void
find_reducer(Fold *fold, const char *name, Jsonb *initial)
{
	Oid			types[2] = {JSONBOID, JSONBOID};
	Oid			function = LookupFuncName(coord_qualified_name(name), 2, types, true);

	if (!OidIsValid(function))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function %s(jsonb, jsonb) does not exist", name),
				 errhint("A reducer takes the state and an event, both jsonb, and returns the next state.")));
	if (get_func_prokind(function) != PROKIND_FUNCTION || get_func_rettype(function) != JSONBOID ||
		get_func_retset(function))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("%s cannot be a reducer", name),
				 errhint("It must be a function that returns jsonb.")));
	if (coord_function_aclcheck(function, GetUserId()) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function %s", name)));
	fold->reducer_name = pstrdup(name);
	fmgr_info(function, &fold->reducer);
	fold->hash = hash_reducer(function, initial);
}

/* The stream, if the caller may use it. */
static void
find_stream(Fold *fold)
{
	static Statement read = {
		"SELECT v.owner, v.truncated_before FROM coord_internal.stream v" VISIBLE_STREAM("$2", "$3")
		" WHERE v.stream = $1",
		3, {TEXTOID, OIDOID, BOOLOID}
	};
	QueryScope	scope;
	Datum		values[3];
	bool		isnull;

	event_set_reader(&values[1]);
	query_begin(&scope);
	values[0] = CStringGetTextDatum(fold->stream);
	if (query_run(&read, values, NULL, 0) > 0)
	{
		fold->owner = DatumGetObjectId(query_value(0, 1, &isnull));
		fold->truncated_before = query_int8(0, 2);
	}
	query_end(&scope);
}

/* Begin with the last snapshot up to a version, if there is one. */
static void
read_snapshot(Fold *fold, int64 at_version)
{
	static Statement read = {
		"SELECT version, pos, state FROM coord_internal.stream_snapshot"
		" WHERE stream = $1 AND reducer = $2 AND version <= $3 ORDER BY version DESC LIMIT 1",
		3, {TEXTOID, INT8OID, INT8OID}
	};
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	Datum		values[3];

	query_begin(&scope);
	values[0] = CStringGetTextDatum(fold->stream);
	values[1] = Int64GetDatum(fold->hash);
	values[2] = Int64GetDatum(at_version);
	if (query_run(&read, values, NULL, 0) > 0)
	{
		fold->version = query_int8(0, 1);
		fold->pos = query_int8(0, 2);
		fold->state = query_jsonb(context, 0, 3);
	}
	query_end(&scope);
}

/* The next state, in "context". */
static void
apply(Fold *fold, const Event *event, MemoryContext context)
{
	LOCAL_FCINFO(fcinfo, 2);
	MemoryContext old;
	Datum		result;
	bool		isnull;

	InitFunctionCallInfoData(*fcinfo, &fold->reducer, 2, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = JsonbPGetDatum(fold->state);
	fcinfo->args[0].isnull = false;
	fcinfo->args[1].value = JsonbPGetDatum(event_document(event));
	fcinfo->args[1].isnull = false;
	result = FunctionCallInvoke(fcinfo);
	fold->version = DatumGetInt64(event_field(event, 3, &isnull));
	fold->pos = event->pos;
	if (fcinfo->isnull)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("reducer %s returned null", fold->reducer_name),
				 errdetail("It was called for version " INT64_FORMAT " of stream \"%s\".",
						   fold->version, fold->stream),
				 errhint("A reducer that ignores an event returns the state that it was given.")));
	old = MemoryContextSwitchTo(context);
	pfree(fold->state);
	fold->state = DatumGetJsonbPCopy(result);
	MemoryContextSwitchTo(old);
}

/* Fold the events of a stream up to a version. */
static void
fold_stream(Fold *fold, Jsonb *initial, int64 at_version)
{
	static Statement read = {
		"SELECT ROW(" EVENT_OF_STREAM ")::coord.event, 0 FROM coord_internal.stream_event v"
		" WHERE v.stream = $1 AND v.version > $2 AND v.version <= $3 ORDER BY v.version LIMIT $4",
		4, {TEXTOID, INT8OID, INT8OID, INT8OID}
	};
	MemoryContext context = CurrentMemoryContext;
	MemoryContext chunk = AllocSetContextCreate(context, "coord events", ALLOCSET_DEFAULT_SIZES);
	MemoryContext each = AllocSetContextCreate(context, "coord event", ALLOCSET_DEFAULT_SIZES);
	int			count = CHUNK;

	fold->state = memcpy(palloc(VARSIZE(initial)), initial, VARSIZE(initial));
	find_stream(fold);
	if (!OidIsValid(fold->owner))
		return;
	read_snapshot(fold, at_version);
	if (fold->version + 1 < fold->truncated_before && fold->version < at_version)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("stream \"%s\" was truncated before version " INT64_FORMAT, fold->stream,
						fold->truncated_before),
				 errdetail("There is no snapshot of this reducer and initial state from which its state could be told."),
				 errhint("Call coord.stream_snapshot() before coord.stream_truncate().")));
	while (count == CHUNK)
	{
		Event	   *events;
		Datum		values[4];

		MemoryContextReset(chunk);
		MemoryContextSwitchTo(chunk);
		values[0] = CStringGetTextDatum(fold->stream);
		values[1] = Int64GetDatum(fold->version);
		values[2] = Int64GetDatum(at_version);
		values[3] = Int64GetDatum(CHUNK);
		count = subscription_read_items(&read, values, false, &events);
		MemoryContextSwitchTo(each);
		for (int i = 0; i < count; i++)
		{
			CHECK_FOR_INTERRUPTS();
			apply(fold, &events[i], context);
			MemoryContextReset(each);
		}
		MemoryContextSwitchTo(context);
	}
	MemoryContextDelete(chunk);
	MemoryContextDelete(each);
}

/* The arguments that both functions share. */
static void
get_fold(FunctionCallInfo fcinfo, Fold *fold, Jsonb **initial)
{
	char	   *reducer;

	memset(fold, 0, sizeof(*fold));
	fold->stream = check_text(fcinfo, 0, "stream");
	check_name("stream", fold->stream);
	reducer = check_text(fcinfo, 1, "reducer");
	check_required(fcinfo, 2, "initial");
	*initial = PG_GETARG_JSONB_P(2);
	installation_check();
	find_reducer(fold, reducer, *initial);
}

/* coord.stream_load(stream, reducer, initial, at_version) */
Datum
coord_stream_load(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	int64		at_version = PG_ARGISNULL(3) ? PG_INT64_MAX : PG_GETARG_INT64(3);
	Fold		fold;
	Jsonb	   *initial;
	Datum		values[3];
	bool		nulls[3] = {false};

	if (at_version < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("at_version must not be negative")));
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	get_fold(fcinfo, &fold, &initial);
	fold_stream(&fold, initial, at_version);
	values[0] = JsonbPGetDatum(fold.state);
	values[1] = Int64GetDatum(fold.version);
	values[2] = Int64GetDatum(fold.pos);
	nulls[2] = fold.pos == 0;
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	return (Datum) 0;
}

/* coord.stream_snapshot(stream, reducer, initial) */
Datum
coord_stream_snapshot(PG_FUNCTION_ARGS)
{
	static Statement insert = {
		"INSERT INTO coord_internal.stream_snapshot (stream, reducer, version, pos, state, taken_at)"
		" VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
		6, {TEXTOID, INT8OID, INT8OID, INT8OID, JSONBOID, TIMESTAMPTZOID}
	};
	static Statement forget = {
		"DELETE FROM coord_internal.stream_snapshot WHERE stream = $1 AND reducer = $2 AND version <"
		" (SELECT min(version) FROM (SELECT version FROM coord_internal.stream_snapshot"
		"  WHERE stream = $1 AND reducer = $2 ORDER BY version DESC LIMIT $3) AS kept)",
		3, {TEXTOID, INT8OID, INT4OID}
	};
	Fold		fold;
	Jsonb	   *initial;
	QueryScope	scope;
	Datum		values[6];

	check_not_in_recovery("coord.stream_snapshot()");
	get_fold(fcinfo, &fold, &initial);
	fold_stream(&fold, initial, PG_INT64_MAX);
	if (fold.version == 0)
		PG_RETURN_INT64(0);
	if (!access_may_act(fold.owner, "stream", NULL))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for stream \"%s\"", fold.stream),
				 errdetail("A snapshot is made by members of its owner, and of coord_admin.")));
	query_begin(&scope);
	values[0] = CStringGetTextDatum(fold.stream);
	values[1] = Int64GetDatum(fold.hash);
	values[2] = Int64GetDatum(fold.version);
	values[3] = Int64GetDatum(fold.pos);
	values[4] = JsonbPGetDatum(fold.state);
	values[5] = TimestampTzGetDatum(clock_now());
	query_run(&insert, values, NULL, 0);
	values[2] = Int32GetDatum(KEPT);
	query_run(&forget, values, NULL, 0);
	query_end(&scope);
	PG_RETURN_INT64(fold.version);
}
