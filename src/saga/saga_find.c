/*-------------------------------------------------------------------------
 *
 * saga_find.c
 *	  Looking at sagas: status, wait, find.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/access.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/compat.h"
#include "base/installation.h"
#include "base/query.h"
#include "saga/saga_instance.h"

/* A waiter looks again this often even when nothing rings. */
#define WAIT_RECHECK_MS 30000

PG_FUNCTION_INFO_V1(coord_saga_status);
PG_FUNCTION_INFO_V1(coord_saga_find);
PG_FUNCTION_INFO_V1(coord_saga_wait);
PG_FUNCTION_INFO_V1(coord_internal_check_visible);

/*
 * The status, as of now, of a saga that the current user may see, and whether
 * he may repair it; NULL when there is none.
 */
static char *
read_status(int64 id, bool *may_repair)
{
	static Statement live = {
		"SELECT s.status, s.owner, v.name FROM coord_internal.saga s"
		" JOIN coord_internal.saga_version v ON v.id = s.definition"
		" WHERE s.id = $1",
		1, {INT8OID}
	};
	static Statement archived = {
		"SELECT status, owner, name FROM coord_internal.saga_archive WHERE id = $1",
		1, {INT8OID}
	};
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	Datum		value = Int64GetDatum(id);
	char	   *status = NULL;
	char	   *name = NULL;
	Oid			owner = InvalidOid;
	bool		isnull;

	/*
	 * The archive is looked at second: a saga goes from the one to the other in
	 * one transaction, never back, so it is seen in one of them.
	 */
	query_begin(&scope);
	if (query_run_latest(&live, &value, NULL, 1) > 0 ||
		query_run_latest(&archived, &value, NULL, 1) > 0)
	{
		status = query_text(context, 0, 1);
		owner = DatumGetObjectId(query_value(0, 2, &isnull));
		name = query_text(context, 0, 3);
	}
	query_end(&scope);
	if (status == NULL || !access_may_act(owner, "saga", name))
		return NULL;
	*may_repair = access_may_act(owner, "saga", NULL);
	return status;
}

/* The status of a saga that the current user may see; NULL: there is none. */
char *
saga_visible_status(int64 id)
{
	bool		may_repair;

	return read_status(id, &may_repair);
}

/*
 * The status of a saga that the current user may repair: members of its owner
 * and coord_admin may, roles with coord.grant_use() only see and cancel it.
 */
char *
saga_repairable_status(int64 id, const char *verb)
{
	bool		may_repair = false;
	char	   *status = read_status(id, &may_repair);

	if (status == NULL)
		return saga_status_or_error(id);
	if (!may_repair)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to %s saga " INT64_FORMAT, verb, id),
				 errdetail("It is for members of its owner and of coord_admin; coord.grant_use() allows to see and to cancel it.")));
	return status;
}

/* The same; 42704 when there is none. */
char *
saga_status_or_error(int64 id)
{
	char	   *status = saga_visible_status(id);

	if (status == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("saga " INT64_FORMAT " does not exist", id)));
	return status;
}

/* coord.saga_status(id) */
Datum
coord_saga_status(PG_FUNCTION_ARGS)
{
	check_required(fcinfo, 0, "id");
	installation_check();
	PG_RETURN_TEXT_P(cstring_to_text(saga_status_or_error(PG_GETARG_INT64(0))));
}

/* For the SQL functions of the interface: the id, or 42704. */
Datum
coord_internal_check_visible(PG_FUNCTION_ARGS)
{
	check_required(fcinfo, 0, "id");
	installation_check();
	(void) saga_status_or_error(PG_GETARG_INT64(0));
	PG_RETURN_INT64(PG_GETARG_INT64(0));
}

/* coord.saga_find(name, key): the id, NULL when there is none to be seen. */
Datum
coord_saga_find(PG_FUNCTION_ARGS)
{
	static Statement read = {
		"SELECT saga_id FROM coord_internal.saga_key WHERE name = $1 AND key = $2",
		2, {TEXTOID, TEXTOID}
	};
	char	   *name = check_text(fcinfo, 0, "name");
	char	   *key = check_text(fcinfo, 1, "key");
	QueryScope	scope;
	Datum		values[2];
	int64		id = 0;

	installation_check();
	query_begin(&scope);
	values[0] = CStringGetTextDatum(name);
	values[1] = CStringGetTextDatum(key);
	if (query_run_latest(&read, values, NULL, 1) > 0)
	{
		bool		isnull;

		id = DatumGetInt64(query_value(0, 1, &isnull));
	}
	query_end(&scope);
	if (id == 0 || saga_visible_status(id) == NULL)
		PG_RETURN_NULL();
	PG_RETURN_INT64(id);
}

/* Has an operator asked for something that was left to who had the saga in hand? */
static bool
has_request(int64 id)
{
	static Statement read = {
		"SELECT FROM coord_internal.saga_request WHERE saga_id = $1 LIMIT 1", 1, {INT8OID}
	};
	QueryScope	scope;
	Datum		value = Int64GetDatum(id);
	bool		found;

	query_begin(&scope);
	found = query_run_latest(&read, &value, NULL, 1) > 0;
	query_end(&scope);
	return found;
}

static bool
is_going_on(const char *status)
{
	return strcmp(status, "running") == 0 || strcmp(status, "compensating") == 0;
}

/*
 * Is it finished, or stopped until an operator does something?  Stopped is not what one
 * of them has set going already, which may be left to who has the saga in hand.  Sets
 * the status.
 */
bool
saga_has_nothing_to_wait_for(int64 id, char **status)
{
	*status = saga_status_or_error(id);
	if (is_going_on(*status))
		return false;
	if (saga_status_is_final(machine_state(&saga_machine, *status)))
		return true;
	if (has_request(id))
		return false;

	/* It may have been carried out since the status was read. */
	*status = saga_status_or_error(id);
	return !is_going_on(*status);
}

/*
 * coord.saga_wait(id, timeout): the status once the saga is finished, suspended
 * or paused, or when the timeout is over.
 */
Datum
coord_saga_wait(PG_FUNCTION_ARGS)
{
	static uint32 wait_event = 0;
	ConditionVariable *waiters;
	TimestampTz end;
	int64		us = 60 * USECS_PER_SEC;
	int64		id;
	char	   *status;

	check_required(fcinfo, 0, "id");
	id = PG_GETARG_INT64(0);
	if (!PG_ARGISNULL(1))
		us = clock_interval_us(PG_GETARG_INTERVAL_P(1));
	if (us < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("timeout must not be negative")));
	installation_check();
	check_not_in_recovery("coord.saga_wait()");
	doorbell_attach();
	if (doorbell_started_here(id))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("saga " INT64_FORMAT " was started or changed in this transaction", id),
				 errdetail("It cannot run before the transaction commits, and the transaction would wait for it."),
				 errhint("Commit first, then wait.")));

	end = GetCurrentTimestamp() + us;
	waiters = doorbell_waiters(id);
	ConditionVariablePrepareToSleep(waiters);
	for (;;)
	{
		int64		left;
		bool		done = saga_has_nothing_to_wait_for(id, &status);

		left = end - GetCurrentTimestamp();
		if (done || left <= 0)
			break;
		(void) ConditionVariableTimedSleep(waiters,
										   Min(left / 1000 + 1, WAIT_RECHECK_MS),
										   coord_wait_event(&wait_event, "CoordSagaWait"));
	}
	ConditionVariableCancelSleep();
	PG_RETURN_TEXT_P(cstring_to_text(status));
}
