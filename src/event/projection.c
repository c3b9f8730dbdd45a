/*-------------------------------------------------------------------------
 *
 * projection.c
 *	  Projections: tables that a handler keeps in step with events.
 *
 * A projection is a subscription of its name that reads from the beginning, stops at
 * what fails, and knows how to begin anew: a function that empties its tables.  To
 * rebuild it is to call that and to move the cursor to the beginning, in one
 * transaction, so that whoever reads the tables sees the old ones or the new ones.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "parser/parse_func.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/compat.h"
#include "base/guc.h"
#include "base/identity.h"
#include "base/installation.h"
#include "base/query.h"
#include "event/event_shared.h"
#include "event/subscription.h"

PG_FUNCTION_INFO_V1(coord_projection_define);
PG_FUNCTION_INFO_V1(coord_projection_rebuild);
PG_FUNCTION_INFO_V1(coord_projection_wait);

/* Look the function up that empties the tables; its qualified name. */
static char *
find_reset(const char *name)
{
	Oid			function = LookupFuncName(coord_qualified_name(name), 0, NULL, true);

	if (!OidIsValid(function))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function %s() does not exist", name),
				 errdetail("It is to empty what the projection has made.")));
	if (get_func_prokind(function) != PROKIND_FUNCTION || get_func_rettype(function) != VOIDOID)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("%s cannot reset a projection", name),
				 errhint("It must be a function that returns void.")));
	if (coord_function_aclcheck(function, GetUserId()) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function %s", name)));
	return quote_qualified_identifier(get_namespace_name(get_func_namespace(function)), get_func_name(function));
}

/* coord.subscribe(), as a projection wants it. */
static void
subscribe(FunctionCallInfo fcinfo)
{
	LOCAL_FCINFO(call, 14);
	const NullableDatum unset = {(Datum) 0, true};

	InitFunctionCallInfoData(*call, NULL, 14, InvalidOid, NULL, NULL);
	for (int i = 0; i < 14; i++)
		call->args[i] = unset;
	call->args[0] = fcinfo->args[0];
	call->args[1] = fcinfo->args[1];
	call->args[2] = fcinfo->args[2];
	call->args[5].value = CStringGetTextDatum("beginning");
	call->args[8].value = CStringGetTextDatum("each");
	call->args[9].value = Int32GetDatum(500);
	call->args[10].value = Int32GetDatum(1);
	call->args[11].value = Int32GetDatum(10);
	call->args[12].value = CStringGetTextDatum("stop");
	call->args[5].isnull = call->args[8].isnull = call->args[9].isnull = call->args[10].isnull =
		call->args[11].isnull = call->args[12].isnull = false;
	(void) coord_subscribe(call);
}

/* coord.projection_define(name, types, handler, reset) */
Datum
coord_projection_define(PG_FUNCTION_ARGS)
{
	static Statement upsert = {
		"INSERT INTO coord_internal.projection AS p (name, reset) VALUES ($1, $2)"
		" ON CONFLICT (name) DO UPDATE SET reset = $2 WHERE p.reset IS DISTINCT FROM $2",
		2, {TEXTOID, TEXTOID}
	};
	char	   *reset = check_optional_text(fcinfo, 3);
	QueryScope	scope;
	Datum		values[2];
	bool		nulls[2] = {false};
	char	   *name = check_text(fcinfo, 0, "name");

	check_required(fcinfo, 2, "handler");
	installation_check();
	if (reset != NULL)
		reset = find_reset(reset);
	subscribe(fcinfo);
	query_begin(&scope);
	values[0] = CStringGetTextDatum(name);
	nulls[1] = reset == NULL;
	values[1] = reset != NULL ? CStringGetTextDatum(reset) : (Datum) 0;
	query_run(&upsert, values, nulls, 0);
	query_end(&scope);
	PG_RETURN_VOID();
}

/* The function that resets a projection of this name; an error when there is none. */
static char *
read_reset(const char *name)
{
	static Statement read = {
		"SELECT reset FROM coord_internal.projection WHERE name = $1", 1, {TEXTOID}
	};
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	Datum		value;
	char	   *reset = NULL;
	bool		found;

	query_begin(&scope);
	value = CStringGetTextDatum(name);
	found = query_run_latest(&read, &value, NULL, 1) > 0;
	if (found)
		reset = query_text(context, 0, 1);
	query_end(&scope);
	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("projection \"%s\" does not exist", name)));
	return reset;
}

/* Call it as the owner of the projection. */
static void
call_reset(const Subscription *subscription, const char *reset)
{
	LOCAL_FCINFO(call, 0);
	FmgrInfo	flinfo;
	UserScope	user;
	Oid			function;
	int			guc_level;

	identity_enter_user(&user, subscription->owner, subscription->search_path);
	function = LookupFuncName(coord_qualified_name(reset), 0, NULL, false);
	if (coord_function_aclcheck(function, subscription->owner) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function %s", reset)));
	guc_level = identity_enter_call(NULL);
	fmgr_info(function, &flinfo);
	InitFunctionCallInfoData(*call, &flinfo, 0, InvalidOid, NULL, NULL);
	(void) FunctionCallInvoke(call);
	identity_leave_call(guc_level);
	identity_leave_user(&user);
	CommandCounterIncrement();
}

/* coord.projection_rebuild(name) */
Datum
coord_projection_rebuild(PG_FUNCTION_ARGS)
{
	LOCAL_FCINFO(call, 3);
	char	   *name = check_text(fcinfo, 0, "name");
	Subscription *subscription;
	char	   *reset;

	installation_check();
	subscription = subscription_lock_mine(name);
	reset = read_reset(name);
	if (reset == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("projection \"%s\" cannot be reset", name),
				 errhint("Define it with a function that empties what it has made.")));
	call_reset(subscription, reset);
	InitFunctionCallInfoData(*call, NULL, 3, InvalidOid, NULL, NULL);
	call->args[0] = fcinfo->args[0];
	call->args[1].value = Int64GetDatum(0);
	call->args[1].isnull = false;
	call->args[2].value = (Datum) 0;
	call->args[2].isnull = true;
	(void) coord_subscription_seek(call);
	PG_RETURN_VOID();
}

/* Has it handled everything up to a position? */
static bool
has_reached(const char *name, int64 position)
{
	static Statement read = {
		"SELECT FROM coord_internal.subscription s WHERE s.name = $1 AND $2 <= (SELECT c.position"
		"  FROM coord_internal.subscription_cursor c WHERE c.subscription = s.id ORDER BY c.move DESC LIMIT 1)"
		" AND NOT EXISTS (SELECT FROM coord_internal.subscription_event i WHERE i.subscription = s.id AND i.pos <= $2)",
		2, {TEXTOID, INT8OID}
	};
	QueryScope	scope;
	Datum		values[2];
	bool		found;

	query_begin(&scope);
	values[0] = CStringGetTextDatum(name);
	values[1] = Int64GetDatum(position);
	found = query_run_latest(&read, values, NULL, 1) > 0;
	query_end(&scope);
	return found;
}

/* coord.projection_wait(name, position, timeout) */
Datum
coord_projection_wait(PG_FUNCTION_ARGS)
{
	char	   *name = check_text(fcinfo, 0, "name");
	int64		position;
	int64		us = PG_ARGISNULL(2) ? 10 * USECS_PER_SEC : clock_interval_us(PG_GETARG_INTERVAL_P(2));
	TimestampTz end;
	bool		reached;

	check_required(fcinfo, 1, "position");
	position = PG_GETARG_INT64(1);
	if (us < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("timeout must not be negative")));
	installation_check();
	check_not_in_recovery("coord.projection_wait()");
	(void) read_reset(name);
	if (event_own_first() != 0 && position >= event_own_first())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("cannot wait for position " INT64_FORMAT " in a transaction that has published", position),
				 errdetail("Nothing from position " INT64_FORMAT " on is handled before this transaction ends.",
						   event_own_first())));
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("coord.projection_wait() needs isolation level read committed"),
				 errdetail("This transaction would not see what it has waited for.")));
	end = GetCurrentTimestamp() + us;
	for (;;)
	{
		event_wait_begin();
		reached = has_reached(name, position);
		if (reached || !event_wait_until(Min(end, GetCurrentTimestamp() + USECS_PER_SEC)))
		{
			if (reached || GetCurrentTimestamp() >= end)
				break;
		}
	}
	event_wait_end();
	PG_RETURN_BOOL(reached);
}
