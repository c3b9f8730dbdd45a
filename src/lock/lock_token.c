/*-------------------------------------------------------------------------
 *
 * lock_token.c
 *	  Fencing tokens: numbers that only grow.
 *
 * One counter in shared memory for all names.  It begins at the time of its
 * first use after each start of the server, in units of 2^-22 s since 2020, so
 * whatever an earlier run handed out is below it as long as that run handed out
 * no more than the clock had passed, and the clock has not gone back behind its
 * start.  The first is seen to here; the second the user is told.  So tokens
 * need nothing durable, cost one atomic addition, grow over crash, restart,
 * promotion, point-in-time recovery and dump and restore, and stay below 2^53
 * until 2088.
 *
 * 1. "token_limit" is what the counter may reach in a database: the clock, as of
 *	  the last time that somebody looked there.  Who comes to it looks again, and waits if need be:
 *	  four million tokens a second are more than a server can grant.
 * 2. Where the counter is beyond the clock, because tokens are stored that are
 *	  (the clock was set back, or the database comes from another machine), a
 *	  stretch of numbers is reserved in a sequence before one of them is used, by
 *	  each database for itself, since each has but its own sequence to go by later:
 *	  setval() is logged at once, whatever becomes of the transaction, and the
 *	  log is flushed.  A next start begins behind the stretch.
 * 3. Stored tokens more than an hour beyond the clock are more likely a wrong
 *	  clock than a late one: nothing is granted until somebody has said
 *	  coord.fence_advance().
 * 4. A grant that is rolled back has taken its number with it: the counter
 *	  knows no transactions.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/timestamp.h"

#include "base/access.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/installation.h"
#include "base/query.h"
#include "lock/lock.h"
#include "lock/lock_shared.h"

#define TOKENS_PER_SECOND (INT64CONST(1) << 22)
#define MAX_TOKEN ((INT64CONST(1) << 53) - 1)
#define MAX_AHEAD (3600 * TOKENS_PER_SECOND)
#define MAX_ADVANCE (366 * 24 * 3600 * TOKENS_PER_SECOND)

/* Numbers reserved at a time, and from when on it is for less than a wait. */
#define RESERVED (INT64CONST(1) << 36)
#define WORTH_A_WAIT TOKENS_PER_SECOND

PG_FUNCTION_INFO_V1(coord_fence_advance);

/* Has this process seen that the counter is beyond what is stored here? */
static KnownDatabase *known_floored = NULL;

/* The token that belongs to a time. */
static int64
token_of_time(TimestampTz time)
{
	int64		us = time - (TimestampTz) 7305 * USECS_PER_DAY; /* 2000 to 2020 */

	if (us < 0)
		return 0;
	return us / USECS_PER_SEC * TOKENS_PER_SECOND +
		us % USECS_PER_SEC * TOKENS_PER_SECOND / USECS_PER_SEC;
}

/* Bring a value forward. */
static void
advance(pg_atomic_uint64 *variable, int64 value)
{
	uint64		now = pg_atomic_read_u64(variable);

	while ((int64) now < value &&
		   !pg_atomic_compare_exchange_u64(variable, &now, (uint64) value))
		;
}

/* Make sure that a next start begins behind "value". */
static void
reserve(int64 value)
{
	static Statement set = {
		"SELECT setval('coord_internal.token_floor', $1)", 1, {INT8OID}
	};
	QueryScope	scope;
	Datum		argument = Int64GetDatum(value);

	if (value >= MAX_TOKEN)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("there are no fencing tokens left"),
				 errdetail("They end at " INT64_FORMAT ".", MAX_TOKEN)));
	query_begin(&scope);
	query_run(&set, &argument, NULL, 0);
	query_end(&scope);
	XLogFlush(XactLastRecEnd);
}

/*
 * What tables and the sequence say: the highest token, and what was reserved.  Ids of
 * two-phase commit are from the same counter.
 */
static int64
read_stored(int64 *reserved)
{
	static Statement read = {
		"SELECT greatest((SELECT max(token) FROM coord_internal.lease),"
		"  (SELECT max(gtid) FROM coord_internal.twophase_decision),"
		"  (SELECT max(acked_gtid) FROM coord_internal.twophase_participant),"
		"  (SELECT max(first_gtid) FROM coord_internal.twophase_incarnation),"
		"  (SELECT max(gtid) FROM coord_internal.twophase_app), 0),"
		" CASE WHEN is_called THEN last_value ELSE 0 END FROM coord_internal.token_floor",
		0, {0}
	};
	QueryScope	scope;
	int64		stored;

	query_begin(&scope);
	query_run_latest(&read, NULL, NULL, 0);
	stored = query_int8(0, 1);
	*reserved = query_int8(0, 2);
	query_end(&scope);
	return stored;
}

/*
 * See that the counter is beyond what is stored in this database; once after
 * each start of the server, and of each database.
 */
static void
floor_counter(void)
{
	KnownDatabase *known = lock_known_database();
	int64		now = token_of_time(GetCurrentTimestamp());
	int64		reserved;
	int64		stored;

	if (known == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("coord serves at most %d databases of a cluster",
						COORD_MAX_DATABASES)));
	if (!known->floored)
	{
		stored = read_stored(&reserved);
		if (stored > reserved && stored > now + MAX_AHEAD)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("fencing tokens are stored that lie in the future"),
					 errdetail("The highest is " INT64_FORMAT ", of the clock's time would be " INT64_FORMAT ".",
							   stored, now),
					 errhint("If the server's clock is right, SELECT coord.fence_advance(" INT64_FORMAT "); else set it right and restart.",
							 stored)));
		advance(&lock_shared->token, Max(now, Max(stored, reserved)));
		advance(&known->token_limit, now);
		known->floored = true;
	}
	known_floored = known;
}

/* "token" is beyond the limit: look at the clock again, or reserve. */
static void
extend_limit(int64 token)
{
	for (;;)
	{
		int64		now = token_of_time(GetCurrentTimestamp());

		advance(&known_floored->token_limit, now);
		if (token <= (int64) pg_atomic_read_u64(&known_floored->token_limit))
			return;
		if (token - now > WORTH_A_WAIT)
			break;
		CHECK_FOR_INTERRUPTS();
		pg_usleep(100);
	}
	reserve(token + Min(RESERVED, (MAX_TOKEN - token) / 2));
	advance(&known_floored->token_limit, token + Min(RESERVED, (MAX_TOKEN - token) / 2));
}

/* A token higher than all before.  May raise errors: take it before the lock. */
int64
lock_token_next(void)
{
	int64		token;

	if (known_floored == NULL || !known_floored->floored ||
		known_floored->database != MyDatabaseId)
		floor_counter();
	token = (int64) pg_atomic_add_fetch_u64(&lock_shared->token, 1);
	if (token > (int64) pg_atomic_read_u64(&known_floored->token_limit))
		extend_limit(token);
	return token;
}

/* The highest token so far. */
int64
lock_token_current(void)
{
	int64		token;

	if (known_floored == NULL || !known_floored->floored ||
		known_floored->database != MyDatabaseId)
		floor_counter();
	token = (int64) pg_atomic_read_u64(&lock_shared->token);
	if (token > (int64) pg_atomic_read_u64(&known_floored->token_limit))
		extend_limit(token);
	return token;
}

/*
 * coord.fence_advance(min_token): tokens are higher from now on, in this and in
 * later runs of the server.  False: they were already.
 */
Datum
coord_fence_advance(PG_FUNCTION_ARGS)
{
	int64		min_token;
	int64		reserved;
	int64		stored;
	int64		highest;
	KnownDatabase *known;

	check_required(fcinfo, 0, "min_token");
	min_token = PG_GETARG_INT64(0);
	installation_check();
	check_not_in_recovery("coord.fence_advance()");
	if (!access_sees_all(GetUserId()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function coord.fence_advance"),
				 errdetail("It is for members of coord_admin.")));
	if (min_token < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("min_token must be greater than 0")));
	known = lock_known_database();
	if (known != NULL && known->floored &&
		min_token <= (int64) pg_atomic_read_u64(&lock_shared->token))
		PG_RETURN_BOOL(false);
	stored = read_stored(&reserved);
	highest = Max(stored, token_of_time(GetCurrentTimestamp()) + MAX_ADVANCE);
	if (min_token > highest)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("min_token is more than a year ahead of the clock"),
				 errdetail("Tokens end at " INT64_FORMAT " and never go back, so that is taken for a mistake.",
						   MAX_TOKEN)));
	if (min_token < stored && stored > token_of_time(GetCurrentTimestamp()) + MAX_AHEAD)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("min_token is lower than a token that is stored"),
				 errdetail("The highest is " INT64_FORMAT ".", stored)));
	reserve(Max(min_token, reserved));
	if (known != NULL && known->floored)
		advance(&lock_shared->token, min_token);
	PG_RETURN_BOOL(true);
}
