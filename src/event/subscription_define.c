/*-------------------------------------------------------------------------
 *
 * subscription_define.c
 *	  Making, altering and ending subscriptions; what an operator does to them.
 *
 * The handler is looked up in the search_path of who subscribes and stored with its
 * schema; it runs as him.  Altering takes the lock of the subscription, so it comes
 * between two turns, and leaves the cursor.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "parser/parse_func.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "base/access.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/compat.h"
#include "base/doorbell.h"
#include "base/installation.h"
#include "base/query.h"
#include "event/event_log.h"
#include "event/event_read.h"
#include "event/event_shared.h"
#include "event/subscription.h"

PG_FUNCTION_INFO_V1(coord_subscribe);
PG_FUNCTION_INFO_V1(coord_unsubscribe);
PG_FUNCTION_INFO_V1(coord_subscription_pause);
PG_FUNCTION_INFO_V1(coord_subscription_resume);
PG_FUNCTION_INFO_V1(coord_subscription_seek);
PG_FUNCTION_INFO_V1(coord_parked_replay);
PG_FUNCTION_INFO_V1(coord_parked_drop);
PG_FUNCTION_INFO_V1(coord_internal_event_head);

/* What a subscription has of its arguments. */
typedef struct Wanted
{
	char	   *name;
	Datum		types;
	Datum		streams;
	bool		has_streams;
	char	   *handler;
	bool		takes_event;
	char	   *emits;
	Datum		filter;
	bool		has_filter;
	bool		batch;
	int			batch_size;
	int			max_attempts;
	char	   *on_error;
} Wanted;

/* ----------------------------------------------------------------
 *		Handlers
 * ----------------------------------------------------------------
 */

/* The type of the argument of a handler. */
static Oid
argument_type(bool takes_event, bool batch)
{
	if (!takes_event)
		return JSONBOID;
	return batch ? get_array_type(event_row_type()) : event_row_type();
}

/* Why a function cannot be a handler; NULL: it can. */
static char *
handler_problem(Oid function)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Form_pg_proc proc;
	char	   *problem = NULL;

	if (!HeapTupleIsValid(tuple))
		return "It does not exist any more.";
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	if (proc->prokind != PROKIND_FUNCTION)
		problem = "It is not a function.";
	else if (isAnyTempNamespace(proc->pronamespace))
		problem = "It is in a temporary schema.";
	else if (proc->proretset)
		problem = "It returns a set.";
	else if (proc->prorettype != JSONBOID && proc->prorettype != VOIDOID)
		problem = psprintf("It returns %s.", format_type_be(proc->prorettype));
	ReleaseSysCache(tuple);
	return problem;
}

/*
 * The function of a subscription's handler, as its owner may call it now.  InvalidOid,
 * and a reason, when he may not.
 */
Oid
subscription_handler(const Subscription *subscription, char **reason)
{
	List	   *names = coord_qualified_name(subscription->handler);
	Oid			namespace = get_namespace_oid(strVal(linitial(names)), true);
	Oid			type = argument_type(subscription->takes_event, subscription->batch);
	Oid			function = InvalidOid;

	if (OidIsValid(namespace) && coord_schema_aclcheck(namespace, subscription->owner) == ACLCHECK_OK)
		function = GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid,
								   CStringGetDatum(strVal(lsecond(names))),
								   PointerGetDatum(buildoidvector(&type, 1)),
								   ObjectIdGetDatum(namespace));
	if (!OidIsValid(function))
		*reason = psprintf("function %s(%s) does not exist, or its schema may not be used",
						   subscription->handler, format_type_be(type));
	else if (handler_problem(function) != NULL)
		*reason = psprintf("function %s cannot be a handler any more", subscription->handler);
	else if (coord_function_aclcheck(function, subscription->owner) != ACLCHECK_OK)
		*reason = psprintf("permission denied for function %s", subscription->handler);
	else
		return function;
	return InvalidOid;
}

/* Look the handler up; stores its qualified name and what it takes. */
static void
find_handler(Wanted *wanted, const char *name)
{
	List	   *names = coord_qualified_name(name);
	Oid			type = argument_type(true, wanted->batch);
	Oid			function = LookupFuncName(names, 1, &type, true);
	char	   *problem;

	wanted->takes_event = OidIsValid(function);
	if (!OidIsValid(function))
	{
		type = JSONBOID;
		function = LookupFuncName(names, 1, &type, true);
	}
	if (!OidIsValid(function))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function %s(%s) does not exist", name,
						wanted->batch ? "coord.event[]" : "coord.event"),
				 errdetail("Nor does %s(jsonb).", name),
				 errhint("A handler is a function with one argument of type %s or jsonb that returns jsonb or void, looked up in the current search_path and stored with its schema.",
						 wanted->batch ? "coord.event[]" : "coord.event")));
	problem = handler_problem(function);
	if (problem != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("%s cannot be a handler", name),
				 errdetail("%s", problem),
				 errhint("It must return jsonb or void.")));
	wanted->handler = quote_qualified_identifier(get_namespace_name(get_func_namespace(function)),
												 get_func_name(function));
	if (coord_function_aclcheck(function, GetUserId()) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function %s", wanted->handler)));
}

/* ----------------------------------------------------------------
 *		subscribe()
 * ----------------------------------------------------------------
 */

static char *
get_choice(FunctionCallInfo fcinfo, int argument, const char *what, const char *const *choices, int count)
{
	char	   *value = check_text(fcinfo, argument, what);

	for (int i = 0; i < count; i++)
	{
		if (strcmp(value, choices[i]) == 0)
			return value;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid %s \"%s\"", what, value),
			 errhint("It is %s, %s%s%s.", choices[0], count > 2 ? choices[1] : "or",
					 count > 2 ? " or " : " ", choices[count - 1])));
}

static int
get_count(FunctionCallInfo fcinfo, int argument, const char *what, int max)
{
	int			value;

	check_required(fcinfo, argument, what);
	value = PG_GETARG_INT32(argument);
	if (value < 1 || value > max)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be from 1 to %d", what, max)));
	return value;
}

static void
get_wanted(FunctionCallInfo fcinfo, Wanted *wanted)
{
	static const char *const modes[] = {"each", "batch"};
	static const char *const errors[] = {"park_key", "park_event", "stop"};
	char	   *handler = check_optional_text(fcinfo, 2);
	Datum		exact;
	Datum		prefixes;
	bool		all;

	wanted->name = check_text(fcinfo, 0, "name");
	check_name("subscription name", wanted->name);
	check_required(fcinfo, 1, "types");
	wanted->types = PG_GETARG_DATUM(1);
	event_read_patterns("types", wanted->types, &exact, &prefixes, &all);
	wanted->has_streams = !PG_ARGISNULL(4);
	if (wanted->has_streams)
	{
		wanted->streams = PG_GETARG_DATUM(4);
		event_read_patterns("streams", wanted->streams, &exact, &prefixes, &all);
	}
	wanted->emits = check_optional_text(fcinfo, 3);
	if (wanted->emits != NULL)
		event_check_type(wanted->emits);
	wanted->has_filter = !PG_ARGISNULL(7);
	wanted->filter = wanted->has_filter ? PG_GETARG_DATUM(7) : (Datum) 0;
	wanted->batch = strcmp(get_choice(fcinfo, 8, "mode", modes, lengthof(modes)), "batch") == 0;
	wanted->batch_size = get_count(fcinfo, 9, "batch_size", SUBSCRIPTION_MAX_BATCH);
	if (get_count(fcinfo, 10, "parallel", 64) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("parallel subscriptions are not supported yet")));
	wanted->max_attempts = get_count(fcinfo, 11, "max_attempts", 1000000);
	wanted->on_error = get_choice(fcinfo, 12, "on_error", errors, lengthof(errors));
	if (!PG_ARGISNULL(13))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("subscriptions to other servers are not supported yet")));
	if (wanted->emits != NULL && handler == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("emits is for subscriptions with a handler"),
				 errdetail("It is the type of the event that has the handler's result.")));
	if (handler != NULL)
		find_handler(wanted, handler);
}

static void
check_mine(const Subscription *subscription, const char *name)
{
	if (subscription == NULL || !access_may_act(subscription->owner, "subscription", NULL))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("subscription \"%s\" does not exist", name),
				 errdetail("Or it belongs to a role that you are not a member of.")));
}

/* A subscription of the caller's, locked against turns; as it is now. */
Subscription *
subscription_lock_mine(const char *name)
{
	Subscription *subscription = subscription_by_name(name);

	check_mine(subscription, name);
	(void) subscription_lock(subscription->id, true);
	subscription = subscription_by_name(name);
	check_mine(subscription, name);
	return subscription;
}

/* Make it, or make it be as wanted; returns whether there was none. */
static bool
store(const Wanted *wanted, Oid owner)
{
	static Statement insert = {
		"INSERT INTO coord_internal.subscription AS s (id, name, owner, created_at, search_path, types, streams,"
		"  handler, takes_event, emits, filter, batch, batch_size, max_attempts, on_error)"
		" VALUES (nextval('coord_internal.subscription_id'), $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12,"
		"  $13, $14)"
		" ON CONFLICT (name) DO UPDATE SET search_path = $4, types = $5, streams = $6, handler = $7,"
		"  takes_event = $8, emits = $9, filter = $10, batch = $11, batch_size = $12, max_attempts = $13,"
		"  on_error = $14"
		"  WHERE (s.search_path, s.types, s.handler, s.takes_event, s.emits, s.filter::text, s.batch, s.batch_size,"
		"   s.max_attempts, s.on_error, s.streams) IS DISTINCT FROM"
		"   ROW($4, $5, $7, $8, $9, $10::text, $11, $12, $13, $14, $6)",
		14, {TEXTOID, OIDOID, TIMESTAMPTZOID, TEXTOID, TEXTARRAYOID, TEXTARRAYOID, TEXTOID, BOOLOID, TEXTOID,
		JSONPATHOID, BOOLOID, INT4OID, INT4OID, TEXTOID}
	};
	const char *search_path = GetConfigOption("search_path", false, false);
	QueryScope	scope;
	Datum		values[14];
	bool		nulls[14] = {false};
	bool		changed;

	query_begin(&scope);
	values[0] = CStringGetTextDatum(wanted->name);
	values[1] = ObjectIdGetDatum(owner);
	values[2] = TimestampTzGetDatum(clock_now());
	values[3] = CStringGetTextDatum(search_path);
	values[4] = wanted->types;
	nulls[5] = !wanted->has_streams;
	values[5] = wanted->streams;
	nulls[6] = wanted->handler == NULL;
	values[6] = nulls[6] ? (Datum) 0 : CStringGetTextDatum(wanted->handler);
	values[7] = BoolGetDatum(wanted->takes_event);
	nulls[8] = wanted->emits == NULL;
	values[8] = nulls[8] ? (Datum) 0 : CStringGetTextDatum(wanted->emits);
	nulls[9] = !wanted->has_filter;
	values[9] = wanted->filter;
	values[10] = BoolGetDatum(wanted->batch);
	values[11] = Int32GetDatum(wanted->batch_size);
	values[12] = Int32GetDatum(wanted->max_attempts);
	values[13] = CStringGetTextDatum(wanted->on_error);
	changed = query_run(&insert, values, nulls, 0) > 0;
	query_end(&scope);
	return changed;
}

/* Run a statement whose argument is the subscription. */
static void
run_for(Statement *statement, int64 id)
{
	QueryScope	scope;
	Datum		value = Int64GetDatum(id);

	query_begin(&scope);
	query_run(statement, &value, NULL, 0);
	query_end(&scope);
}

/* Where a new one begins. */
static int64
first_position(FunctionCallInfo fcinfo)
{
	static const char *const starts[] = {"now", "beginning"};
	char	   *start = get_choice(fcinfo, 5, "start_from", starts, lengthof(starts));

	if (!PG_ARGISNULL(6))
	{
		if (PG_GETARG_INT64(6) < 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("from_position must not be negative")));
		return PG_GETARG_INT64(6);
	}
	return strcmp(start, "beginning") == 0 ? 0 : event_horizon();
}

/*
 * coord.subscribe(name, types, handler, emits, streams, start_from, from_position,
 * filter, mode, batch_size, parallel, max_attempts, on_error, server)
 */
Datum
coord_subscribe(PG_FUNCTION_ARGS)
{
	/* What waited behind others of its key does no more. */
	static Statement free_waiting = {
		"UPDATE coord_internal.subscription_event SET due_at = coord_internal.now()"
		" WHERE subscription = $1 AND due_at IS NULL AND parked_at IS NULL AND token IS NULL",
		1, {INT8OID}
	};
	Wanted		wanted = {0};
	Subscription *subscription;
	int64		position;

	installation_check();
	check_not_in_recovery("coord.subscribe()");
	get_wanted(fcinfo, &wanted);
	position = first_position(fcinfo);
	subscription = subscription_by_name(wanted.name);
	if (subscription != NULL)
		(void) subscription_lock_mine(wanted.name);
	if (!store(&wanted, GetUserId()))
		PG_RETURN_VOID();
	subscription = subscription_by_name(wanted.name);
	check_mine(subscription, wanted.name);
	if (subscription->on_error != ON_ERROR_PARK_KEY)
		run_for(&free_waiting, subscription->id);
	if (subscription->move == 0)
		subscription_move(subscription, position);
	access_note_role(GetUserId());
	doorbell_scan_at_commit();
	PG_RETURN_VOID();
}

/* ----------------------------------------------------------------
 *		What an operator does
 * ----------------------------------------------------------------
 */

/* coord.unsubscribe(name) */
Datum
coord_unsubscribe(PG_FUNCTION_ARGS)
{
	static Statement deletes[] = {
		{"DELETE FROM coord_internal.subscription_delivery WHERE subscription = $1", 1, {INT8OID}},
		{"DELETE FROM coord_internal.subscription_event WHERE subscription = $1", 1, {INT8OID}},
		{"DELETE FROM coord_internal.subscription_cursor WHERE subscription = $1", 1, {INT8OID}},
		{"DELETE FROM coord_internal.projection p USING coord_internal.subscription s WHERE s.id = $1 AND p.name = s.name", 1, {INT8OID}},
		{"DELETE FROM coord_internal.subscription WHERE id = $1", 1, {INT8OID}}
	};
	char	   *name = check_text(fcinfo, 0, "name");
	Subscription *subscription;

	installation_check();
	if (subscription_by_name(name) == NULL)
		PG_RETURN_BOOL(false);
	subscription = subscription_lock_mine(name);
	for (int i = 0; i < lengthof(deletes); i++)
		run_for(&deletes[i], subscription->id);
	PG_RETURN_BOOL(true);
}

static bool
set_paused(FunctionCallInfo fcinfo, bool paused)
{
	static Statement update = {
		"UPDATE coord_internal.subscription SET paused_at = $2, paused_by = $3, pause_reason = $4"
		" WHERE id = $1 AND (paused_at IS NULL) = ($2 IS NOT NULL)",
		4, {INT8OID, TIMESTAMPTZOID, OIDOID, TEXTOID}
	};
	char	   *name = check_text(fcinfo, 0, "name");
	char	   *reason = check_optional_text(fcinfo, 1);
	Oid			user = GetUserId();
	Subscription *subscription;
	QueryScope	scope;
	Datum		values[4];
	bool		nulls[4] = {false, !paused, !paused, !paused || reason == NULL};
	bool		changed;

	installation_check();
	subscription = subscription_by_name(name);
	check_mine(subscription, name);
	query_begin(&scope);
	values[0] = Int64GetDatum(subscription->id);
	values[1] = TimestampTzGetDatum(clock_now());
	values[2] = ObjectIdGetDatum(user);
	values[3] = reason != NULL ? CStringGetTextDatum(reason) : (Datum) 0;
	changed = query_run(&update, values, nulls, 0) > 0;
	query_end(&scope);
	if (changed)
		doorbell_scan_at_commit();
	return changed;
}

/* coord.subscription_pause(name, reason): what is being handled is finished. */
Datum
coord_subscription_pause(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(set_paused(fcinfo, true));
}

/* coord.subscription_resume(name, reason) */
Datum
coord_subscription_resume(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(set_paused(fcinfo, false));
}

/* The last position before a time. */
static int64
position_before(TimestampTz at)
{
	static Statement read = {
		"SELECT least((SELECT min(pos) FROM coord_internal.event_log WHERE published_at >= $1),"
		"  (SELECT min(pos) FROM coord_internal.stream_event WHERE published_at >= $1)) - 1",
		1, {TIMESTAMPTZOID}
	};
	int64		horizon = event_horizon();
	QueryScope	scope;
	Datum		value = TimestampTzGetDatum(at);
	int64		result = horizon;
	bool		isnull;
	Datum		found;

	query_begin(&scope);
	query_run_latest(&read, &value, NULL, 1);
	found = query_value(0, 1, &isnull);
	if (!isnull)
		result = Min(horizon, DatumGetInt64(found));
	query_end(&scope);
	return result;
}

/*
 * coord.subscription_seek(name, to_position, to_time): go on after a position.  What is
 * in hand of consumers, and what was put aside of what comes after it, is forgotten,
 * since it is read again.
 */
Datum
coord_subscription_seek(PG_FUNCTION_ARGS)
{
	static Statement undeliver = {
		"DELETE FROM coord_internal.subscription_delivery WHERE subscription = $1", 1, {INT8OID}
	};
	static Statement forget = {
		"DELETE FROM coord_internal.subscription_event WHERE subscription = $1 AND pos > $2",
		2, {INT8OID, INT8OID}
	};
	static Statement give_back = {
		"UPDATE coord_internal.subscription_event SET token = NULL, due_at = $2"
		" WHERE subscription = $1 AND token IS NOT NULL",
		2, {INT8OID, TIMESTAMPTZOID}
	};
	char	   *name = check_text(fcinfo, 0, "name");
	Subscription *subscription;
	QueryScope	scope;
	Datum		values[2];
	int64		position;

	installation_check();
	if (PG_ARGISNULL(1) == PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("either to_position or to_time must be given")));
	subscription = subscription_lock_mine(name);
	position = PG_ARGISNULL(1) ? position_before(PG_GETARG_TIMESTAMPTZ(2)) : PG_GETARG_INT64(1);
	if (position < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("to_position must not be negative")));
	query_begin(&scope);
	values[0] = Int64GetDatum(subscription->id);
	values[1] = Int64GetDatum(position);
	query_run(&undeliver, values, NULL, 0);
	query_run(&forget, values, NULL, 0);
	values[1] = TimestampTzGetDatum(clock_now());
	query_run(&give_back, values, NULL, 0);
	query_end(&scope);
	subscription_move(subscription, position);
	doorbell_scan_at_commit();
	PG_RETURN_INT64(position);
}

/* coord.parked_replay(name, key): what was parked is tried again, with all its attempts. */
Datum
coord_parked_replay(PG_FUNCTION_ARGS)
{
	static Statement update = {
		"UPDATE coord_internal.subscription_event SET parked_at = NULL, attempts = 0, due_at = $2"
		" WHERE subscription = $1 AND parked_at IS NOT NULL AND ($3 IS NULL OR key = $3)",
		3, {INT8OID, TIMESTAMPTZOID, TEXTOID}
	};
	char	   *name = check_text(fcinfo, 0, "name");
	char	   *key = check_optional_text(fcinfo, 1);
	Subscription *subscription;
	QueryScope	scope;
	Datum		values[3];
	bool		nulls[3] = {false, false, key == NULL};
	uint64		count;

	installation_check();
	subscription = subscription_lock_mine(name);
	query_begin(&scope);
	values[0] = Int64GetDatum(subscription->id);
	values[1] = TimestampTzGetDatum(clock_now());
	values[2] = key != NULL ? CStringGetTextDatum(key) : (Datum) 0;
	count = query_run(&update, values, nulls, 0);
	query_end(&scope);
	if (count > 0)
		doorbell_scan_at_commit();
	PG_RETURN_INT64(count);
}

/* coord.parked_drop(name, pos, reason): a parked event is given up. */
Datum
coord_parked_drop(PG_FUNCTION_ARGS)
{
	static Statement read = {
		"SELECT FROM coord_internal.subscription_event"
		" WHERE subscription = $1 AND pos = $2 AND parked_at IS NOT NULL",
		2, {INT8OID, INT8OID}
	};
	char	   *name = check_text(fcinfo, 0, "name");
	char	   *reason = check_optional_text(fcinfo, 2);
	Subscription *subscription;
	QueryScope	scope;
	Datum		values[2];
	bool		found;

	check_required(fcinfo, 1, "pos");
	installation_check();
	subscription = subscription_lock_mine(name);
	query_begin(&scope);
	values[0] = Int64GetDatum(subscription->id);
	values[1] = PG_GETARG_DATUM(1);
	found = query_run_latest(&read, values, NULL, 1) > 0;
	query_end(&scope);
	if (!found)
		PG_RETURN_BOOL(false);
	subscription_item_done(subscription, PG_GETARG_INT64(1));
	doorbell_scan_at_commit();
	ereport(LOG,
			(errmsg("coord: event " INT64_FORMAT " of subscription \"%s\" was dropped by role \"%s\"",
					PG_GETARG_INT64(1), name, GetUserNameFromId(GetUserId(), true)),
			 reason ? errdetail("Reason: %s", reason) : 0));
	PG_RETURN_BOOL(true);
}

/* How far the log may be read; null on a standby. */
Datum
coord_internal_event_head(PG_FUNCTION_ARGS)
{
	if (RecoveryInProgress())
		PG_RETURN_NULL();
	PG_RETURN_INT64(event_horizon());
}
