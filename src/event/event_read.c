/*-------------------------------------------------------------------------
 *
 * event_read.c
 *	  Reading events: the log in order, a stream, a coordination.
 *
 * The log is read up to the horizon (event_shared.c), under a snapshot that is taken
 * after it was read, also in a transaction that keeps an older one: events that this
 * would not see would otherwise be passed over for ever.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "base/access.h"
#include "base/check.h"
#include "base/installation.h"
#include "base/query.h"
#include "event/event_read.h"
#include "event/event_shared.h"

PG_FUNCTION_INFO_V1(coord_log_read);
PG_FUNCTION_INFO_V1(coord_stream_read);
PG_FUNCTION_INFO_V1(coord_coordination_events);

/* The columns of coord.event. */
#define EVENT_COLUMNS 13

/*
 * Type patterns as two arrays: whole types, and beginnings.  Both are null for none,
 * which means all.
 */
void
event_read_patterns(const char *what, Datum patterns, Datum *exact, Datum *prefixes, bool *all)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;
	int			nexact = 0;
	int			nprefixes = 0;
	Datum	   *exacts;
	Datum	   *beginnings;

	deconstruct_array(DatumGetArrayTypeP(patterns), TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, &count);
	exacts = palloc(sizeof(Datum) * Max(count, 1));
	beginnings = palloc(sizeof(Datum) * Max(count, 1));
	*all = false;
	for (int i = 0; i < count; i++)
	{
		char	   *pattern;
		char	   *star;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not contain null", what)));
		pattern = TextDatumGetCString(elements[i]);
		check_name("pattern", pattern);
		star = strchr(pattern, '*');
		if (star != NULL && star[1] != '\0')
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("invalid pattern \"%s\" in %s", pattern, what),
					 errdetail("A star may only be at the end.")));
		*all = *all || star == pattern;
		if (star == NULL)
			exacts[nexact++] = elements[i];
		else
			beginnings[nprefixes++] = PointerGetDatum(cstring_to_text_with_len(pattern, star - pattern));
	}
	*exact = PointerGetDatum(construct_array(exacts, nexact, TEXTOID, -1, false, TYPALIGN_INT));
	*prefixes = PointerGetDatum(construct_array(beginnings, nprefixes, TEXTOID, -1, false, TYPALIGN_INT));
}

/* Put the rows of the last statement, columns of coord.event, into the result. */
static void
return_events(ReturnSetInfo *result, uint64 rows)
{
	for (uint64 i = 0; i < rows; i++)
	{
		Datum		values[EVENT_COLUMNS];
		bool		nulls[EVENT_COLUMNS];

		for (int j = 0; j < EVENT_COLUMNS; j++)
			values[j] = query_value(i, j + 1, &nulls[j]);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
}

/* Two arguments for VISIBLE_STREAM. */
void
event_set_reader(Datum *values)
{
	Oid			user = GetUserId();

	values[0] = ObjectIdGetDatum(installation_is_foreign() ? InvalidOid : user);
	values[1] = BoolGetDatum(access_sees_all(user));
}

static int64
get_limit(FunctionCallInfo fcinfo, int argument)
{
	int			limit;

	if (PG_ARGISNULL(argument))
		return PG_INT64_MAX;
	limit = PG_GETARG_INT32(argument);
	if (limit < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_events must not be negative")));
	return limit;
}

/* coord.log_read(after_position, max_events, types) */
Datum
coord_log_read(PG_FUNCTION_ARGS)
{
	static Statement read = {
		"(SELECT e.pos, NULL::text, NULL::bigint, e.type, e.key, e.data, e.metadata, e.event_id,"
		"  NULL::text, NULL::text, e.correlation_id, e.causation_id, e.published_at"
		"  FROM coord_internal.event_log e WHERE e.pos > $1 AND e.pos <= $2"
		"  AND ($4 OR e.type = ANY ($5) OR EXISTS (SELECT FROM unnest($6) p WHERE starts_with(e.type, p)))"
		"  ORDER BY e.pos LIMIT $3)"
		" UNION ALL"
		" (SELECT " EVENT_OF_STREAM
		"  FROM coord_internal.stream_event v" VISIBLE_STREAM("$7", "$8") " WHERE v.pos > $1 AND v.pos <= $2"
		"  AND ($4 OR v.type = ANY ($5) OR EXISTS (SELECT FROM unnest($6) p WHERE starts_with(v.type, p)))"
		"  ORDER BY v.pos LIMIT $3)"
		" ORDER BY 1 LIMIT $3",
		8, {INT8OID, INT8OID, INT8OID, BOOLOID, TEXTARRAYOID, TEXTARRAYOID, OIDOID, BOOLOID}
	};
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	QueryScope	scope;
	Datum		values[8];
	bool		nulls[8] = {false};
	bool		all = PG_ARGISNULL(2);
	int64		after = PG_ARGISNULL(0) ? 0 : PG_GETARG_INT64(0);

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	values[2] = Int64GetDatum(get_limit(fcinfo, 1));
	nulls[4] = nulls[5] = all;
	if (!all)
		event_read_patterns("types", PG_GETARG_DATUM(2), &values[4], &values[5], &all);
	installation_check();
	values[0] = Int64GetDatum(after);
	values[1] = Int64GetDatum(event_horizon());
	values[3] = BoolGetDatum(all);
	event_set_reader(&values[6]);
	query_begin(&scope);
	return_events(result, query_run_latest(&read, values, nulls, 0));
	query_end(&scope);
	return (Datum) 0;
}

/* coord.stream_read(stream, from_version, max_events, backward) */
Datum
coord_stream_read(PG_FUNCTION_ARGS)
{
	static Statement forward = {
		"SELECT " EVENT_OF_STREAM " FROM coord_internal.stream_event v" VISIBLE_STREAM("$4", "$5")
		" WHERE v.stream = $1 AND v.version >= $2"
		" ORDER BY v.version LIMIT $3",
		5, {TEXTOID, INT8OID, INT8OID, OIDOID, BOOLOID}
	};
	static Statement backward = {
		"SELECT " EVENT_OF_STREAM " FROM coord_internal.stream_event v" VISIBLE_STREAM("$4", "$5")
		" WHERE v.stream = $1 AND v.version >= $2"
		" ORDER BY v.version DESC LIMIT $3",
		5, {TEXTOID, INT8OID, INT8OID, OIDOID, BOOLOID}
	};
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	char	   *stream = check_text(fcinfo, 0, "stream");
	QueryScope	scope;
	Datum		values[5];

	check_name("stream", stream);
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	installation_check();
	values[1] = Int64GetDatum(PG_ARGISNULL(1) ? 1 : PG_GETARG_INT64(1));
	values[2] = Int64GetDatum(get_limit(fcinfo, 2));
	event_set_reader(&values[3]);
	query_begin(&scope);
	values[0] = CStringGetTextDatum(stream);
	return_events(result, query_run(!PG_ARGISNULL(3) && PG_GETARG_BOOL(3) ? &backward : &forward,
									values, NULL, 0));
	query_end(&scope);
	return (Datum) 0;
}

/* coord.coordination_events(coordination_id) */
Datum
coord_coordination_events(PG_FUNCTION_ARGS)
{
	static Statement read = {
		"SELECT " EVENT_OF_STREAM " FROM coord_internal.stream_event v" VISIBLE_STREAM("$2", "$3")
		" WHERE v.coordination_id = $1 ORDER BY v.pos",
		3, {TEXTOID, OIDOID, BOOLOID}
	};
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	char	   *coordination_id = check_text(fcinfo, 0, "coordination_id");
	QueryScope	scope;
	Datum		values[3];

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	installation_check();
	event_set_reader(&values[1]);
	query_begin(&scope);
	values[0] = CStringGetTextDatum(coordination_id);
	return_events(result, query_run(&read, values, NULL, 0));
	query_end(&scope);
	return (Datum) 0;
}
