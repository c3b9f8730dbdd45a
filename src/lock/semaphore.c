/*-------------------------------------------------------------------------
 *
 * semaphore.c
 *	  coord.semaphore_create(), semaphore_resize() and semaphore_drop().
 *
 * A semaphore is a name with a stored capacity; its permits are leases, one for
 * each owner.  To make or to drop one, one goes through the gate, so that nobody
 * is granted what is just becoming something else.  Not to resize it: whoever
 * waits inside the gate for permits shall be let go by a larger capacity, and a
 * grant that came just before a smaller one is like one that is held beyond it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/access.h"
#include "base/check.h"
#include "base/commit_level.h"
#include "base/query.h"
#include "lock/lease.h"

PG_FUNCTION_INFO_V1(coord_semaphore_create);
PG_FUNCTION_INFO_V1(coord_semaphore_resize);
PG_FUNCTION_INFO_V1(coord_semaphore_drop);

/* How long to wait for those who wait for permits to let one pass. */
#define GATE_US (10 * USECS_PER_SEC)

static int
required_capacity(FunctionCallInfo fcinfo)
{
	check_required(fcinfo, 1, "capacity");
	if (PG_GETARG_INT32(1) < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("capacity must be greater than 0"),
				 errdetail("It is how many permits can be held at a time."),
				 errhint("A lease has one; SELECT coord.semaphore_drop(..) ends a semaphore.")));
	return PG_GETARG_INT32(1);
}

/* The owner of a semaphore's row; InvalidOid: there is none. */
static Oid
creator(const char *name)
{
	static Statement read = {
		"SELECT role FROM coord_internal.semaphore WHERE name = $1", 1, {TEXTOID}
	};
	QueryScope	scope;
	Datum		value = CStringGetTextDatum(name);
	Oid			result = InvalidOid;
	bool		isnull;

	query_begin(&scope);
	if (query_run_latest(&read, &value, NULL, 0) > 0)
		result = DatumGetObjectId(query_value(0, 1, &isnull));
	query_end(&scope);
	return result;
}

static void
check_creator(const char *name, Oid role)
{
	if (!is_member_of_role(GetUserId(), role) && !access_sees_all(GetUserId()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for semaphore \"%s\"", name),
				 errdetail("It is for members of the role that created it and of coord_admin.")));
}

static void
enter_gate(const char *name)
{
	if (!lease_enter_gate(name, lease_wait_end(GATE_US)))
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("\"%s\" cannot be changed while others wait for it", name),
				 errhint("Try again. coord.lock_waiters shows who waits.")));
	lease_wait_done();
}

/*
 * Change the row by a statement with the arguments name, capacity and role, and
 * note the capacity, 0: none.  False: there is no row.
 */
static bool
write_capacity(Statement *statement, const char *name, int capacity)
{
	Oid			user = GetUserId();
	QueryScope	scope;
	Datum		values[3];
	bool		found;

	query_begin(&scope);
	values[0] = CStringGetTextDatum(name);
	values[1] = Int32GetDatum(capacity);
	values[2] = ObjectIdGetDatum(user);
	found = query_write_latest(statement, values, NULL) > 0;
	query_end(&scope);
	if (!found)
		return false;
	lease_note_capacity(name, capacity);
	commit_durably();
	return true;
}

static bool
anybody_has(const LeaseState *state)
{
	for (int i = 0; i < state->nholders; i++)
	{
		if (lease_is_live(&state->holders[i]))
			return true;
	}
	return false;
}

/* coord.semaphore_create(name, capacity) */
Datum
coord_semaphore_create(PG_FUNCTION_ARGS)
{
	static Statement insert = {
		"INSERT INTO coord_internal.semaphore (name, capacity, role) VALUES ($1, $2, $3)",
		3, {TEXTOID, INT4OID, OIDOID}
	};
	char	   *name;
	int			capacity;
	LeaseState	state;

	lease_check_callable("coord.semaphore_create()");
	name = lock_name(fcinfo, 0);
	capacity = required_capacity(fcinfo);
	PreventCommandIfReadOnly("coord.semaphore_create()");
	lease_get(name, &state);
	if (state.capacity == capacity)
		PG_RETURN_VOID();
	enter_gate(name);
	lease_get(name, &state);
	if (state.capacity == capacity)
	{
		lease_leave_gate(name);
		PG_RETURN_VOID();
	}
	if (state.capacity > 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("semaphore \"%s\" exists", name),
				 errdetail("It has %d permits.", state.capacity),
				 errhint("SELECT coord.semaphore_resize(..) changes that.")));
	if (anybody_has(&state))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("\"%s\" is a lease that is held", name),
				 errdetail("\"%s\" has it.", state.holders[0].owner)));
	access_note_role(GetUserId());
	(void) write_capacity(&insert, name, capacity);
	PG_RETURN_VOID();
}

static void
unknown(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("there is no semaphore \"%s\"", name),
			 errdetail("It was not created, or was dropped."),
			 errhint("SELECT coord.semaphore_create(..) makes one.")));
}

/*
 * coord.semaphore_resize(name, capacity).  Permits that are held beyond a smaller
 * capacity stay with their owners; none is granted until enough are back.
 */
Datum
coord_semaphore_resize(PG_FUNCTION_ARGS)
{
	static Statement update = {
		"UPDATE coord_internal.semaphore SET capacity = $2 WHERE name = $1 AND $3 IS NOT NULL",
		3, {TEXTOID, INT4OID, OIDOID}
	};
	char	   *name;
	int			capacity;
	Oid			role;

	lease_check_callable("coord.semaphore_resize()");
	name = lock_name(fcinfo, 0);
	capacity = required_capacity(fcinfo);
	PreventCommandIfReadOnly("coord.semaphore_resize()");
	role = creator(name);
	if (!OidIsValid(role))
		unknown(name);
	check_creator(name, role);

	if (!write_capacity(&update, name, capacity))
		unknown(name);
	PG_RETURN_VOID();
}

/* coord.semaphore_drop(name): true if there was one. */
Datum
coord_semaphore_drop(PG_FUNCTION_ARGS)
{
	static Statement delete = {
		"DELETE FROM coord_internal.semaphore WHERE name = $1 AND $2 = 0 AND $3 IS NOT NULL",
		3, {TEXTOID, INT4OID, OIDOID}
	};
	char	   *name;
	LeaseState	state;
	Oid			role;

	lease_check_callable("coord.semaphore_drop()");
	name = lock_name(fcinfo, 0);
	PreventCommandIfReadOnly("coord.semaphore_drop()");
	role = creator(name);
	if (!OidIsValid(role))
		PG_RETURN_BOOL(false);
	check_creator(name, role);
	enter_gate(name);
	lease_get(name, &state);
	if (state.capacity == 0)
	{
		lease_leave_gate(name);
		PG_RETURN_BOOL(false);
	}
	if (anybody_has(&state))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("semaphore \"%s\" is in use", name),
				 errdetail("\"%s\" has permits of it.", state.holders[0].owner),
				 errhint("SELECT coord.lease_break(..) takes them away.")));
	for (int i = 0; i < state.nholders; i++)
		lease_end(name, &state.holders[i]);
	PG_RETURN_BOOL(write_capacity(&delete, name, 0));
}
