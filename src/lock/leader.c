/*-------------------------------------------------------------------------
 *
 * leader.c
 *	  coord.leader_campaign(), leader_resign() and once_per().
 *
 * An election is a lease: whoever has it leads.  once_per() is not one, though
 * its names are under the same rules: what it remembers is a time of the wall
 * clock, since "once a day" must not begin anew with every restart.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/compat.h"
#include "base/installation.h"
#include "base/query.h"
#include "lock/lease.h"

#define DEFAULT_TTL_US (15 * USECS_PER_SEC)

PG_FUNCTION_INFO_V1(coord_leader_campaign);
PG_FUNCTION_INFO_V1(coord_leader_resign);
PG_FUNCTION_INFO_V1(coord_once_per);

static void
check_no_semaphore(const char *name, const LeaseState *state)
{
	if (state->capacity > 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("\"%s\" is a semaphore", name),
				 errdetail("Several hold it at a time, so none of them leads."),
				 errhint("Use another name for the election.")));
}

/* Who leads, for a campaigner who does not; NULL: nobody. */
static LeaseHolder *
leader_of(LeaseState *state)
{
	if (state->nholders == 0 || !lease_is_live(&state->holders[0]))
		return NULL;
	return &state->holders[0];
}

/* coord.leader_campaign(name, owner, ttl) */
Datum
coord_leader_campaign(PG_FUNCTION_ARGS)
{
	LeaseRequest request = {0};
	LeaseHolder granted;
	LeaseHolder *leader = &granted;
	LeaseState	state;
	TupleDesc	tupdesc;
	Datum		values[4] = {0};
	bool		nulls[4] = {false, true, true, true};
	bool		is_leader;

	lease_check_callable("coord.leader_campaign()");
	request.name = lock_name(fcinfo, 0);
	request.owner = lease_owner(fcinfo, 1);
	request.ttl_us = lease_ttl(fcinfo, 2, DEFAULT_TTL_US);
	request.permits = 1;
	request.leader = true;
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "function must return a row");
	InitMaterializedSRF(fcinfo, 0);
	lease_get(request.name, &state);
	check_no_semaphore(request.name, &state);
	is_leader = lease_acquire(&request, &granted);
	if (!is_leader)
	{
		lease_get(request.name, &state);
		leader = leader_of(&state);
	}
	values[0] = BoolGetDatum(is_leader);
	if (leader != NULL)
	{
		values[1] = CStringGetTextDatum(leader->owner);
		values[2] = Int64GetDatum(leader->token);
		values[3] = Int64GetDatum(lease_remaining_ms(leader));
		memset(nulls, false, sizeof(nulls));
	}
	tuplestore_putvalues(((ReturnSetInfo *) fcinfo->resultinfo)->setResult,
						 ((ReturnSetInfo *) fcinfo->resultinfo)->setDesc, values, nulls);
	return (Datum) 0;
}

/* coord.leader_resign(name, owner): true if that owner led. */
Datum
coord_leader_resign(PG_FUNCTION_ARGS)
{
	char	   *name;
	char	   *owner;
	LeaseState	state;
	LeaseHolder *leader;

	lease_check_callable("coord.leader_resign()");
	name = lock_name(fcinfo, 0);
	owner = lease_owner(fcinfo, 1);
	PreventCommandIfReadOnly("coord.leader_resign()");
	lease_get(name, &state);
	check_no_semaphore(name, &state);
	leader = leader_of(&state);
	if (leader == NULL || strcmp(leader->owner, owner) != 0)
		PG_RETURN_BOOL(false);
	lease_check_ours(name, leader);
	lease_end(name, leader);
	PG_RETURN_BOOL(true);
}

/*
 * coord.once_per(name, period): true for the first caller of each period, when
 * his transaction commits.  Others wait for that; if he rolls back, the next one
 * is the first.
 */
Datum
coord_once_per(PG_FUNCTION_ARGS)
{
	static Statement take = {
		"INSERT INTO coord_internal.once AS o (name, at, role) VALUES ($1, $2, $4)"
		" ON CONFLICT (name) DO UPDATE SET at = excluded.at, role = excluded.role"
		" WHERE o.at <= $3 OR o.at > $5 RETURNING 1",
		5, {TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID, OIDOID, TIMESTAMPTZOID}
	};
	Oid			user = GetUserId();
	char	   *name;
	int64		us;
	TimestampTz now;
	QueryScope	scope;
	Datum		values[5];
	bool		first;

	lease_check_callable("coord.once_per()");
	name = lock_name(fcinfo, 0);
	check_required(fcinfo, 1, "period");
	us = clock_interval_us(PG_GETARG_INTERVAL_P(1));
	if (us <= 0 || !coord_interval_is_finite(PG_GETARG_INTERVAL_P(1)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("period must be finite and greater than 0"),
				 errdetail("One caller in each period is told true."),
				 errhint("Give an interval such as '1 day'.")));
	PreventCommandIfReadOnly("coord.once_per()");
	now = clock_now();
	query_begin(&scope);
	values[0] = CStringGetTextDatum(name);
	values[1] = TimestampTzGetDatum(now);
	values[2] = TimestampTzGetDatum(now - us);
	values[3] = ObjectIdGetDatum(user);

	/* Later than anybody can have written: the clock was set back. */
	values[4] = TimestampTzGetDatum(now + us);
	first = query_write_latest(&take, values, NULL) > 0;
	query_end(&scope);
	PG_RETURN_BOOL(first);
}
