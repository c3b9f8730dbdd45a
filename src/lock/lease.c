/*-------------------------------------------------------------------------
 *
 * lease.c
 *	  coord.lease_acquire(), lease_renew(), lease_release() and lease_break().
 *
 * A lease belongs to an owner that the caller names, not to a session: it works
 * through any pooler and outlives the connection.  See lease_store.c for where it
 * is kept and lease_wait.c for how it is waited for.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/access.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/commit_level.h"
#include "base/compat.h"
#include "base/debug_point.h"
#include "base/errors.h"
#include "base/guc.h"
#include "base/installation.h"
#include "base/query.h"
#include "lock/lock.h"
#include "lock/lease.h"
#include "lock/lock_shared.h"

#define DEFAULT_TTL_US (30 * USECS_PER_SEC)

PG_FUNCTION_INFO_V1(coord_lease_acquire);
PG_FUNCTION_INFO_V1(coord_lease_renew);
PG_FUNCTION_INFO_V1(coord_lease_release);
PG_FUNCTION_INFO_V1(coord_lease_break);

/* ----------------------------------------------------------------
 *		Arguments and results
 * ----------------------------------------------------------------
 */

/*
 * What all verbs of leases ask first: the version, a primary, and a database
 * that is no copy; then that the leases are in shared memory.
 */
void
lease_check_callable(const char *function)
{
	installation_check();
	check_not_in_recovery(function);
	if (installation_is_copy())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this database is a copy"),
				 errdetail("Its leases are those of the database that it was made from."),
				 errhint("SELECT coord.resume(); if this database shall act.")));
	lease_open();
}

/* A time to live, in microseconds; NULL: the default. */
int64
lease_ttl(FunctionCallInfo fcinfo, int argument, int64 default_us)
{
	int64		limit = guc_max_lease * INT64CONST(1000);
	int64		us;

	if (PG_ARGISNULL(argument))
		return Min(default_us, limit);
	us = clock_interval_us(PG_GETARG_INTERVAL_P(argument));
	if (!coord_interval_is_finite(PG_GETARG_INTERVAL_P(argument)))
		us = PG_INT64_MAX;
	if (us <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("ttl must be greater than 0"),
				 errdetail("A lease without a time to live would be over when it is granted."),
				 errhint("Give an interval such as '30 s'.")));
	if (us > limit)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("ttl is longer than coord.max_lease"),
				 errdetail("It may be %d ms at most.", guc_max_lease),
				 errhint("'30000' is read as seconds; write '30 s' or '30000 ms'. Renew a lease that is needed for longer.")));
	return us;
}

/* The argument "owner". */
char *
lease_owner(FunctionCallInfo fcinfo, int argument)
{
	char	   *owner = check_optional_text(fcinfo, argument);

	lock_check_text("owner", owner);
	return owner;
}

static int64
timeout_us(FunctionCallInfo fcinfo, int argument)
{
	int64		us;

	if (PG_ARGISNULL(argument))
		return 0;
	us = clock_interval_us(PG_GETARG_INTERVAL_P(argument));
	if (us < 0 || !coord_interval_is_finite(PG_GETARG_INTERVAL_P(argument)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("timeout must be finite and not negative"),
				 errdetail("What a lease is waited for is not seen by the deadlock detector, so every wait has an end."),
				 errhint("0 does not wait.")));
	return us;
}

int64
lease_remaining_ms(const LeaseHolder *holder)
{
	return Max(0, (holder->deadline - clock_steady_us() + 999) / 1000);
}

TimestampTz
lease_expires_at(const LeaseHolder *holder)
{
	return clock_now() + (holder->deadline - clock_steady_us());
}

/* May the current user act for this holder? */
static bool
is_ours(const LeaseHolder *holder)
{
	return is_member_of_role(GetUserId(), holder->role);
}

/* May the current user be told whose it is, and the token? */
bool
lease_may_see(const LeaseHolder *holder)
{
	return is_ours(holder) || access_sees_all(GetUserId());
}

static void
not_ours(const char *name, const LeaseHolder *holder)
{
	char	   *role = GetUserNameFromId(holder->role, true);

	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("lease \"%s\" was granted to another role", name),
			 role != NULL ? errdetail("Its owner \"%s\" acquired it as role \"%s\".", holder->owner, role) :
			 errdetail("Its owner \"%s\" acquired it as a role that was dropped.", holder->owner),
			 errhint("coord.lease_break() takes a lease away from whoever has it.")));
}

/* 42501 when he may not, nor everything. */
void
lease_check_ours(const char *name, const LeaseHolder *holder)
{
	if (!is_ours(holder) && !access_sees_all(GetUserId()))
		not_ours(name, holder);
}

/* ----------------------------------------------------------------
 *		Rows
 *
 * They are written under the latest snapshot: what counts is what is in shared
 * memory, not what a transaction-wide snapshot shows.
 * ----------------------------------------------------------------
 */

/* What an operator should be able to read later. */
void
lease_log(const char *name, const LeaseHolder *holder, const char *event, const char *reason)
{
	static Statement insert = {
		"INSERT INTO coord_internal.lease_log (at, name, owner, token, event, role, reason)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7)",
		7, {TIMESTAMPTZOID, TEXTOID, TEXTOID, INT8OID, TEXTOID, OIDOID, TEXTOID}
	};
	Oid			user = GetUserId();
	QueryScope	scope;
	Datum		values[7];
	bool		nulls[7] = {false};

	query_begin(&scope);
	values[0] = TimestampTzGetDatum(clock_now());
	values[1] = CStringGetTextDatum(name);
	values[2] = CStringGetTextDatum(holder->owner);
	values[3] = Int64GetDatum(holder->token);
	values[4] = CStringGetTextDatum(event);
	values[5] = ObjectIdGetDatum(user);
	nulls[6] = reason == NULL;
	if (reason != NULL)
		values[6] = CStringGetTextDatum(reason);
	query_run(&insert, values, nulls, 0);
	query_end(&scope);
}

/* The row of a grant; of a semaphore each owner has one. */
static void
write_row(const char *name, bool semaphore, const LeaseHolder *holder)
{
	static Statement upsert = {
		"INSERT INTO coord_internal.lease AS l (name, holder, kind, owner, role, token, permits, ttl_us, granted_at)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
		" ON CONFLICT (name, holder) DO UPDATE SET kind = excluded.kind, owner = excluded.owner,"
		" role = excluded.role, token = excluded.token, permits = excluded.permits,"
		" ttl_us = excluded.ttl_us, granted_at = excluded.granted_at",
		9, {TEXTOID, TEXTOID, TEXTOID, TEXTOID, OIDOID, INT8OID, INT4OID, INT8OID, TIMESTAMPTZOID}
	};
	QueryScope	scope;
	Datum		values[9];

	query_begin(&scope);
	values[0] = CStringGetTextDatum(name);
	values[1] = CStringGetTextDatum(semaphore ? holder->owner : "");
	values[2] = CStringGetTextDatum(semaphore ? "semaphore" : holder->leader ? "leader" : "lease");
	values[3] = CStringGetTextDatum(holder->owner);
	values[4] = ObjectIdGetDatum(holder->role);
	values[5] = Int64GetDatum(holder->token);
	values[6] = Int32GetDatum(holder->permits);
	values[7] = Int64GetDatum(holder->ttl_us);
	values[8] = TimestampTzGetDatum(holder->granted_at);
	query_write_latest(&upsert, values, NULL);
	query_end(&scope);
}

/* Remove the row of a grant; false: somebody else has. */
static bool
delete_row(const char *name, int64 token)
{
	return lease_row_delete(lease_relation(), name, token);
}

/* A longer time to live than before is durable before it counts. */
static void
write_ttl(const char *name, LeaseHolder *holder, int64 ttl_us)
{
	static Statement update = {
		"UPDATE coord_internal.lease SET ttl_us = $3 WHERE name = $1 AND token = $2",
		3, {TEXTOID, INT8OID, INT8OID}
	};
	QueryScope	scope;
	Datum		values[3];
	bool		found;

	query_begin(&scope);
	values[0] = CStringGetTextDatum(name);
	values[1] = Int64GetDatum(holder->token);
	values[2] = Int64GetDatum(ttl_us);
	found = query_write_latest(&update, values, NULL) > 0;
	query_end(&scope);
	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_COORD_LEASE_LOST),
				 errmsg("lease \"%s\" is lost", name),
				 errdetail("Token " INT64_FORMAT " was broken or released by a concurrent transaction.", holder->token)));
	holder->ttl_us = ttl_us;
	holder->deadline = clock_steady_us() + ttl_us;
	lease_note_ttl(name, holder);
	commit_durably();
}

/* ----------------------------------------------------------------
 *		Acquiring
 * ----------------------------------------------------------------
 */

/* What the owner has already, with a fresh time to live; false: nothing. */
static bool
acquire_again(const LeaseRequest *request, LeaseState *state, LeaseHolder *granted)
{
	for (int i = 0; i < state->nholders; i++)
	{
		LeaseHolder *holder = &state->holders[i];
		LeaseExtension extension;

		if (strcmp(holder->owner, request->owner) != 0 || !lease_is_live(holder))
			continue;
		if (!is_ours(holder))
		{
			/* Somebody else of that name; of a semaphore each owner has one lease. */
			if (state->capacity > 0)
				not_ours(request->name, holder);
			continue;
		}
		if (holder->leader != request->leader)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 holder->leader ? errmsg("\"%s\" leads by \"%s\"", request->owner, request->name) :
					 errmsg("\"%s\" has \"%s\" as a lease", request->owner, request->name),
					 errhint("Use one name for an election or for a lease, not for both.")));
		if (holder->permits != request->permits)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("owner \"%s\" has %d permits of \"%s\"", request->owner,
							holder->permits, request->name),
					 errhint("Release them before acquiring another number.")));
		extension = lease_extend(request->name, holder->token, request->ttl_us, granted);
		if (extension == LEASE_NOT_HELD)
			return false;
		if (extension == LEASE_LONGER)
			write_ttl(request->name, granted, request->ttl_us);
		return true;
	}
	return false;
}

/*
 * Permits in use; a lease is a semaphore with one.  "kept" says whose are, if it
 * has been looked at already.
 */
static int64
permits_in_use(const LeaseState *state, const bool *kept)
{
	int64		used = 0;

	for (int i = 0; i < state->nholders; i++)
	{
		if (kept != NULL ? kept[i] : lease_is_live(&state->holders[i]))
			used += state->holders[i].permits;
	}
	return used;
}

static bool
has_room(const LeaseRequest *request, const LeaseState *state, const bool *kept)
{
	return permits_in_use(state, kept) + request->permits <= Max(state->capacity, 1);
}

static void
check_permits(const LeaseRequest *request, const LeaseState *state)
{
	if (request->permits == 1 || state->capacity >= request->permits)
		return;
	if (state->capacity == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" is not a semaphore", request->name),
				 errhint("SELECT coord.semaphore_create(..) before more than one permit is acquired.")));
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("semaphore \"%s\" has only %d permits", request->name, state->capacity),
			 errdetail("%d are wanted at once, which would never be granted.", request->permits),
			 errhint("SELECT coord.semaphore_resize(..) changes its capacity.")));
}

/* How long to wait for somebody who has the row of a lease that has run out. */
#define BUSY_US (USECS_PER_SEC / 10)

/*
 * Inside the gate: wait for room.  "state" is the name as it then is; "busy" says
 * that there was room and it could not be used just now.  True: there is room, or
 * the owner has it already.
 */
static bool
wait_for_room(const LeaseRequest *request, int64 until, bool busy, LeaseState *state,
			  LeaseHolder *granted, bool *again)
{
	bool		waiting = false;
	bool		room;

	for (;;)
	{
		lease_get(request->name, state);
		check_permits(request, state);
		*again = acquire_again(request, state, granted);
		room = *again || (has_room(request, state, NULL) && !busy);
		if (room)
			break;
		if (!waiting)
		{
			/* Look once more from here on: what happens now rings. */
			if (until == 0)
				break;
			lease_wait_begin(request->name);
			lease_wait_prepare(request->name);
			waiting = true;
		}
		else
		{
			if (!lease_wait(state, until, busy ? BUSY_US : PG_INT64_MAX))
				break;
			busy = false;
		}
	}
	lease_wait_done();
	return room;
}

/*
 * Lock the row of a lease that has run out, without waiting.  Whoever has it is
 * about to release it, or to make it last longer: then it is not free yet.  A row
 * that is not there at all keeps nobody.
 */
static bool
lock_row(const char *name, const LeaseHolder *holder)
{
	static Statement lock = {
		"SELECT FROM coord_internal.lease WHERE name = $1 AND token = $2 AND ttl_us = $3"
		" FOR UPDATE SKIP LOCKED",
		3, {TEXTOID, INT8OID, INT8OID}
	};
	static Statement look = {
		"SELECT FROM coord_internal.lease WHERE name = $1 AND token = $2", 2, {TEXTOID, INT8OID}
	};
	QueryScope	scope;
	Datum		values[3];
	bool		free;

	query_begin(&scope);
	values[0] = CStringGetTextDatum(name);
	values[1] = Int64GetDatum(holder->token);
	values[2] = Int64GetDatum(holder->ttl_us);
	free = query_write_latest(&lock, values, NULL) > 0 ||
		query_run_latest(&look, values, NULL, 0) == 0;
	query_end(&scope);
	return free;
}

/*
 * Lock the rows of all that have run out: "kept" are those that live, or are not
 * free.  False: then there is no room, and none is locked.
 */
static bool
lock_rows(const LeaseRequest *request, const LeaseState *state, bool *kept)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	bool		any = false;
	volatile bool room = false;

	for (int i = 0; i < state->nholders; i++)
	{
		kept[i] = lease_is_live(&state->holders[i]);
		any = any || !kept[i];
	}
	if (!any)
		return true;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		for (int i = 0; i < state->nholders; i++)
			kept[i] = kept[i] || !lock_row(request->name, &state->holders[i]);
		room = has_room(request, state, kept);
		if (room)
			ReleaseCurrentSubTransaction();
		else
			RollbackAndReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		ReThrowError(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return room;
}

/*
 * Inside the gate and the fence: write the grant.  False: what has run out is not
 * free yet.
 */
static bool
grant(const LeaseRequest *request, const LeaseState *state, LeaseHolder *granted)
{
	bool		semaphore = state->capacity > 0;
	bool	   *kept = palloc0(sizeof(bool) * Max(state->nholders, 1));

	if (!lock_rows(request, state, kept))
		return false;
	for (int i = 0; i < state->nholders && semaphore; i++)
	{
		if (kept[i])
			continue;
		(void) delete_row(request->name, state->holders[i].token);
		lease_note_release(request->name, state->holders[i].token);
	}
	memset(granted, 0, sizeof(LeaseHolder));
	granted->token = lock_token_next();
	granted->ttl_us = request->ttl_us;
	granted->granted_at = clock_now();
	granted->permits = request->permits;
	granted->role = GetUserId();
	granted->leader = request->leader;
	strlcpy(granted->owner, request->owner, sizeof(granted->owner));
	if (state->nholders == 0)
		lease_row_insert(lease_relation(), request->name, semaphore, granted);
	else
		write_row(request->name, semaphore, granted);
	granted->deadline = clock_steady_us() + request->ttl_us;
	lease_note_grant(request->name, granted, semaphore);
	lease_sweep_later(lease_expires_at(granted));
	commit_durably();
	DEBUG_POINT("lease_granted");
	return true;
}

/*
 * Acquire a lease, or permits; false: not granted within the time.  The caller
 * has checked the name.
 */
bool
lease_acquire(const LeaseRequest *request, LeaseHolder *granted)
{
	int64		until = lease_wait_end(request->timeout_us);
	LeaseState	state;
	bool		again = false;
	bool		busy = false;

	PreventCommandIfReadOnly("coord.lease_acquire()");
	lease_get(request->name, &state);
	check_permits(request, &state);
	if (acquire_again(request, &state, granted))
		return true;
	if (!lease_enter_gate(request->name, until))
		return false;
	for (;;)
	{
		if (!wait_for_room(request, until, busy, &state, granted, &again))
			break;
		if (again)
		{
			lease_leave_gate(request->name);
			return true;
		}
		if (state.capacity == 0 && !lease_fence_off(request->name, until))
			break;
		if (grant(request, &state, granted))
			return true;
		if (state.capacity == 0)
			lease_open_fence(request->name);
		busy = true;
	}
	lease_leave_gate(request->name);
	return false;
}

/* coord.lease_acquire(name, owner, ttl, timeout, permits) */
Datum
coord_lease_acquire(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	LeaseRequest request = {0};
	LeaseHolder granted;

	lease_check_callable("coord.lease_acquire()");
	request.name = lock_name(fcinfo, 0);
	request.owner = lease_owner(fcinfo, 1);
	request.ttl_us = lease_ttl(fcinfo, 2, DEFAULT_TTL_US);
	request.timeout_us = timeout_us(fcinfo, 3);
	request.permits = PG_ARGISNULL(4) ? 1 : PG_GETARG_INT32(4);
	if (request.permits < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("permits must be greater than 0"),
				 errdetail("It is how many permits of a semaphore are wanted."),
				 errhint("Leave it out for a lease.")));
	InitMaterializedSRF(fcinfo, 0);
	if (lease_acquire(&request, &granted))
	{
		Datum		values[3];
		bool		nulls[3] = {false};

		values[0] = Int64GetDatum(granted.token);
		values[1] = Int64GetDatum(lease_remaining_ms(&granted));
		values[2] = TimestampTzGetDatum(lease_expires_at(&granted));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* ----------------------------------------------------------------
 *		Renewing, releasing, breaking
 * ----------------------------------------------------------------
 */

static void
lost(const char *name, int64 token, LeaseState *state)
{
	const LeaseHolder *holder = lease_find(state, token);
	bool		taken = holder == NULL && state->nholders > 0 && state->capacity == 0 &&
		lease_may_see(&state->holders[0]);

	ereport(ERROR,
			(errcode(ERRCODE_COORD_LEASE_LOST),
			 errmsg("lease \"%s\" is lost", name),
			 taken ? errdetail("It is held by \"%s\" with token " INT64_FORMAT ", not with token " INT64_FORMAT ".",
							   state->holders[0].owner, state->holders[0].token, token) :
			 errdetail("Token " INT64_FORMAT " was released, was broken, or its time to live has ended.", token),
			 errhint("Stop what the lease protects, and acquire it anew.")));
}

/* coord.lease_renew(name, token, ttl): when it now expires. */
Datum
coord_lease_renew(PG_FUNCTION_ARGS)
{
	char	   *name;
	int64		token;
	int64		ttl_us;
	LeaseState	state;
	LeaseHolder *holder;
	LeaseHolder now;

	lease_check_callable("coord.lease_renew()");
	name = lock_name(fcinfo, 0);
	check_required(fcinfo, 1, "token");
	token = PG_GETARG_INT64(1);
	ttl_us = lease_ttl(fcinfo, 2, 0);
	lease_get(name, &state);
	holder = lease_find(&state, token);
	if (holder == NULL)
		lost(name, token, &state);
	lease_check_ours(name, holder);
	switch (lease_extend(name, token, ttl_us, &now))
	{
		case LEASE_EXTENDED:
			break;
		case LEASE_LONGER:
			PreventCommandIfReadOnly("coord.lease_renew()");
			write_ttl(name, &now, ttl_us);
			break;
		case LEASE_NOT_HELD:
			lost(name, token, &state);
	}
	PG_RETURN_TIMESTAMPTZ(lease_expires_at(&now));
}

/*
 * A token that is not of this lease: 22023 when it is of another one, or was
 * never given out.
 */
static void
check_token(const char *name, int64 token)
{
	static Statement read = {
		"SELECT name FROM coord_internal.lease WHERE token = $1", 1, {INT8OID}
	};
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	Datum		value = Int64GetDatum(token);
	char	   *other = NULL;

	if (token < 1 || token > lock_token_current())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there is no token " INT64_FORMAT, token),
				 errdetail("It was never given out."),
				 errhint("coord.lease_acquire() returns the token.")));
	query_begin(&scope);
	if (query_run(&read, &value, NULL, 0) > 0)
		other = query_text(context, 0, 1);
	query_end(&scope);
	if (other != NULL && strcmp(other, name) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("token " INT64_FORMAT " is not of lease \"%s\"", token, name),
				 errdetail("It is of another lease."),
				 errhint("A token belongs to the name it was acquired with.")));
}

/*
 * A lease ends, when this transaction commits; a crash may lose that.  False:
 * somebody else has ended it.
 */
bool
lease_end(const char *name, const LeaseHolder *holder)
{
	bool		nothing_else = commit_may_be_late();

	if (!delete_row(name, holder->token))
		return false;
	lease_note_release(name, holder->token);
	commit_late(nothing_else);
	return true;
}

/* coord.lease_release(name, token): false: it was over already. */
Datum
coord_lease_release(PG_FUNCTION_ARGS)
{
	char	   *name;
	int64		token;
	LeaseState	state;
	LeaseHolder *holder;
	bool		live;

	lease_check_callable("coord.lease_release()");
	name = lock_name(fcinfo, 0);
	check_required(fcinfo, 1, "token");
	token = PG_GETARG_INT64(1);
	PreventCommandIfReadOnly("coord.lease_release()");
	lease_get(name, &state);
	holder = lease_find(&state, token);
	if (holder == NULL)
	{
		check_token(name, token);
		PG_RETURN_BOOL(false);
	}
	lease_check_ours(name, holder);
	live = lease_is_live(holder);
	PG_RETURN_BOOL(lease_end(name, holder) && live);
}

/* coord.lease_break(name, reason): true if somebody had it. */
Datum
coord_lease_break(PG_FUNCTION_ARGS)
{
	char	   *name;
	char	   *reason;
	LeaseState	state;
	bool		broken = false;

	lease_check_callable("coord.lease_break()");
	name = lock_name(fcinfo, 0);
	reason = check_optional_text(fcinfo, 1);
	PreventCommandIfReadOnly("coord.lease_break()");
	lease_get(name, &state);
	for (int i = 0; i < state.nholders; i++)
	{
		const LeaseHolder *holder = &state.holders[i];

		bool		had = delete_row(name, holder->token);

		lease_note_release(name, holder->token);
		if (!had || !lease_is_live(holder))
			continue;
		broken = true;
		lease_log(name, holder, "broken", reason);
		ereport(LOG,
				(errmsg("coord: lease \"%s\" of \"%s\" broken by role \"%s\"", name, holder->owner,
						GetUserNameFromId(GetUserId(), true)),
				 reason ? errdetail("Reason: %s", reason) : 0));
	}
	if (broken)
		commit_durably();
	PG_RETURN_BOOL(broken);
}
