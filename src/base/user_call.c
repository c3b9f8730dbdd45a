/*-------------------------------------------------------------------------
 *
 * user_call.c
 *	  What is around a call of user code: its timeout, and what it must not do
 *	  to the session of whoever has it run.
 *
 * identity.c says as whom it runs.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "storage/lock.h"
#include "tcop/pquery.h"
#include "utils/builtins.h"
#include "utils/portal.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "base/identity.h"
#include "base/query.h"
#include "base/user_call.h"

/*
 * A call's timeout as the session's statement timeout.  In a caller's session
 * his own may be running and comes first if it is nearer; returns when his
 * ends, 0 if there is none.
 */
TimestampTz
user_call_arm(TimestampTz ours, bool *armed)
{
	TimestampTz theirs = 0;

	*armed = false;
	if (get_timeout_active(STATEMENT_TIMEOUT))
	{
		theirs = get_timeout_finish_time(STATEMENT_TIMEOUT);
		if (theirs <= ours)
			return 0;
	}
	enable_timeout_at(STATEMENT_TIMEOUT, ours);
	*armed = true;
	return theirs;
}

void
user_call_disarm(TimestampTz theirs)
{
	disable_timeout(STATEMENT_TIMEOUT, false);
	if (theirs != 0)
		enable_timeout_at(STATEMENT_TIMEOUT, theirs);
}

/* Was the process really cancelled, or did user code raise the code itself? */
bool
user_call_is_cancel(const ErrorData *error)
{
	return error->sqlerrcode == ERRCODE_QUERY_CANCELED && error->funcname != NULL &&
		strcmp(error->funcname, "ProcessInterrupts") == 0;
}

/* ----------------------------------------------------------------
 *		Another role's code in a caller's session
 *
 * It runs as a security-restricted operation.  What core's restriction leaves
 * open is closed here.
 * ----------------------------------------------------------------
 */

static int64
count_session_things(bool cursors, bool locks)
{
	static Statement open_cursors = {
		"SELECT count(*) FROM pg_catalog.pg_cursors WHERE name <> $1",
		1, {TEXTOID}
	};
	static Statement held_locks = {
		"SELECT count(*) FROM pg_catalog.pg_locks WHERE pid = pg_backend_pid()"
		" AND locktype = 'advisory'",
		0, {0}
	};
	static Statement temp_objects = {
		"SELECT count(*) FROM pg_catalog.pg_depend"
		" WHERE refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass"
		" AND refobjid = pg_catalog.pg_my_temp_schema()",
		0, {0}
	};
	QueryScope	scope;
	Datum		value;
	int64		result;
	bool		isnull;

	query_begin(&scope);
	value = CStringGetTextDatum(ActivePortal ? ActivePortal->name : "");
	query_run(cursors ? &open_cursors : locks ? &held_locks : &temp_objects,
			  &value, NULL, 0);
	result = DatumGetInt64(query_value(0, 1, &isnull));
	query_end(&scope);
	return result;
}

/*
 * Before the call.  False when it must not be made here: cursors of the caller
 * are open, and whoever knows a cursor's name may fetch from it.
 */
bool
user_call_watch(Oid owner, Oid caller, UserCallSession *state)
{
	state->watch = !identity_is_worker() && owner != caller;
	if (!state->watch)
		return true;
	state->temp_objects = count_session_things(false, false);
	state->advisory_locks = count_session_things(false, true);
	return count_session_things(true, false) == 0;
}

/* Within the call: what it left in the caller's temporary schema undoes it. */
void
user_call_check(const UserCallSession *state)
{
	if (state->watch && count_session_things(false, false) > state->temp_objects)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("cannot leave a temporary object within security-restricted operation")));
}

/* After the call, however it ended. */
void
user_call_release(const UserCallSession *state)
{
	if (state->watch && state->advisory_locks == 0)
		LockReleaseSession(USER_LOCKMETHOD);
}

/* Did core refuse what the code may do in a worker? */
bool
user_call_is_restriction(const UserCallSession *state, const ErrorData *error)
{
	return state->watch && error->sqlerrcode == ERRCODE_INSUFFICIENT_PRIVILEGE &&
		error->message_id != NULL &&
		strstr(error->message_id, "security-restricted operation") != NULL;
}
