/*-------------------------------------------------------------------------
 *
 * subscription_poll.c
 *	  Consumers outside the database: poll, ack, nack, extend.
 *
 * A delivery is a stretch of the log that was read, but for what was put aside then, and
 * events that had been put aside before, which carry its token.  Acknowledging it
 * deletes a row.  The cursor has moved already, so several consumers share a
 * subscription; what is not acknowledged by the end of the lease is put aside, and
 * delivered again by the next poll.
 *
 * What is in hand keeps its key for itself: events of the same key wait behind it.  Keys
 * of a stretch are read again from the log when somebody else polls meanwhile.
 *
 * A poll commits durably: what a consumer outside has been given is not undone by a
 * crash, even where its publisher committed asynchronously.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/tuplestore.h"

#include "base/access.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/compat.h"
#include "base/debug_point.h"
#include "base/doorbell.h"
#include "base/errors.h"
#include "base/guc.h"
#include "base/installation.h"
#include "base/query.h"
#include "event/event.h"
#include "event/event_shared.h"
#include "event/subscription.h"

PG_FUNCTION_INFO_V1(coord_subscription_poll);
PG_FUNCTION_INFO_V1(coord_subscription_ack);
PG_FUNCTION_INFO_V1(coord_subscription_nack);
PG_FUNCTION_INFO_V1(coord_subscription_extend);

#define KEY_SIZE (CHECK_NAME_MAX + 1)

typedef struct Delivery
{
	int64		token;
	int64		after;
	int64		upto;
	int64	   *aside;
	int			naside;
	TimestampTz lease_until;
} Delivery;

/* ----------------------------------------------------------------
 *		Deliveries
 * ----------------------------------------------------------------
 */

/* Deliveries of a subscription: of a token, or all. */
static int
read_deliveries(const Subscription *subscription, int64 token, Delivery **deliveries)
{
	static Statement read = {
		"SELECT token, after_pos, upto_pos, aside, lease_until FROM coord_internal.subscription_delivery"
		" WHERE subscription = $1 AND ($2 = 0 OR token = $2) ORDER BY token",
		2, {INT8OID, INT8OID}
	};
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	Datum		values[2];
	uint64		rows;

	query_begin(&scope);
	values[0] = Int64GetDatum(subscription->id);
	values[1] = Int64GetDatum(token);
	rows = query_run_latest(&read, values, NULL, 0);
	*deliveries = MemoryContextAllocZero(context, sizeof(Delivery) * Max(rows, 1));
	for (uint64 i = 0; i < rows; i++)
	{
		Delivery   *delivery = &(*deliveries)[i];
		bool		isnull;
		Datum		aside = query_copy(context, i, 4, &isnull);

		delivery->token = query_int8(i, 1);
		delivery->after = query_int8(i, 2);
		delivery->upto = query_int8(i, 3);
		delivery->lease_until = query_time(i, 5);
		if (!isnull)
		{
			delivery->naside = ArrayGetNItems(ARR_NDIM(DatumGetArrayTypeP(aside)),
											  ARR_DIMS(DatumGetArrayTypeP(aside)));
			delivery->aside = (int64 *) ARR_DATA_PTR(DatumGetArrayTypeP(aside));
		}
	}
	query_end(&scope);
	return (int) rows;
}

static bool
was_put_aside(const Delivery *delivery, int64 pos)
{
	for (int i = 0; i < delivery->naside; i++)
	{
		if (delivery->aside[i] == pos)
			return true;
	}
	return false;
}

/* The events of its stretch after a position. */
static int
read_stretch(const Subscription *subscription, const Delivery *delivery, int64 after, Event **events)
{
	int64		reached;
	int			count;
	int			kept = 0;

	if (after < delivery->after)
		after = delivery->after;
	if (after >= delivery->upto)
		return 0;
	count = subscription_read(subscription, after, delivery->upto, PG_INT32_MAX, events, &reached);
	for (int i = 0; i < count; i++)
	{
		if (!was_put_aside(delivery, (*events)[i].pos))
			(*events)[kept++] = (*events)[i];
	}
	return kept;
}

/* The events that carry its token. */
static int
read_taken(const Subscription *subscription, int64 token, Event **events)
{
	static Statement read = {
		"SELECT event, attempts FROM coord_internal.subscription_event"
		" WHERE subscription = $1 AND token = $2 ORDER BY pos",
		2, {INT8OID, INT8OID}
	};
	Datum		values[2];

	values[0] = Int64GetDatum(subscription->id);
	values[1] = Int64GetDatum(token);
	return subscription_read_items(&read, values, true, events);
}

static void
delete_delivery(const Subscription *subscription, int64 token)
{
	static Statement delete = {
		"DELETE FROM coord_internal.subscription_delivery WHERE subscription = $1 AND token = $2",
		2, {INT8OID, INT8OID}
	};
	QueryScope	scope;
	Datum		values[2];

	query_begin(&scope);
	values[0] = Int64GetDatum(subscription->id);
	values[1] = Int64GetDatum(token);
	query_run(&delete, values, NULL, 0);
	query_end(&scope);
}

/*
 * Events that were in hand are not any more, and not done.  Of a key the first is due at
 * "due_at" and the others behind it.  "failed": the attempt counts.
 */
static void
give_back(const Subscription *subscription, const Event *events, int count, TimestampTz due_at,
		  const char *failure)
{
	for (int i = 0; i < count; i++)
	{
		int			attempts = events[i].attempts + (failure != NULL);
		bool		parks = failure != NULL && attempts >= subscription->max_attempts;

		subscription_item_failed(subscription, &events[i], attempts, parks ? 0 : due_at, NULL, failure);
	}
	if (subscription->on_error == ON_ERROR_PARK_KEY)
		subscription_order_keys(subscription);
}

/* Keys that are in hand in stretches; NULL: there are none. */
static HTAB *
keys_in_hand(const Subscription *subscription, const Delivery *deliveries, int count)
{
	HASHCTL		ctl = {0};
	HTAB	   *keys = NULL;

	for (int i = 0; i < count; i++)
	{
		Event	   *events;
		int			n = read_stretch(subscription, &deliveries[i], 0, &events);

		for (int j = 0; j < n; j++)
		{
			if (events[j].key == NULL)
				continue;
			if (keys == NULL)
			{
				ctl.keysize = KEY_SIZE;
				ctl.entrysize = KEY_SIZE;
				ctl.hcxt = CurrentMemoryContext;
				keys = hash_create("coord keys in hand", 256, &ctl, HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
			}
			(void) hash_search(keys, events[j].key, HASH_ENTER, NULL);
		}
	}
	return keys;
}

/*
 * Of events that wait behind others of their key, those that do no more are due: the
 * first of a key that nobody has in hand.
 */
static void
wake_waiting(const Subscription *subscription)
{
	static Statement read = {
		"SELECT i.event, i.attempts FROM coord_internal.subscription_event i"
		" WHERE i.subscription = $1 AND i.due_at IS NULL AND i.parked_at IS NULL AND i.token IS NULL"
		" AND NOT EXISTS (SELECT FROM coord_internal.subscription_event j"
		"  WHERE j.subscription = $1 AND j.key = i.key AND j.pos < i.pos)",
		1, {INT8OID}
	};
	Datum		value = Int64GetDatum(subscription->id);
	Event	   *events;
	int			count = subscription_read_items(&read, &value, true, &events);
	Delivery   *deliveries;
	HTAB	   *keys;

	if (count == 0)
		return;
	keys = keys_in_hand(subscription, deliveries, read_deliveries(subscription, 0, &deliveries));
	for (int i = 0; i < count; i++)
	{
		if (keys == NULL || hash_search(keys, events[i].key, HASH_FIND, NULL) == NULL)
			subscription_item_due(subscription, events[i].pos);
	}
}

/* Deliveries whose lease has ended are put aside; returns whether there were any. */
static bool
expire(const Subscription *subscription, const Delivery *deliveries, int count)
{
	TimestampTz now = clock_now();
	bool		any = false;

	for (int i = 0; i < count; i++)
	{
		Event	   *events;
		int			n;

		if (deliveries[i].lease_until > now)
			continue;
		any = true;
		n = read_taken(subscription, deliveries[i].token, &events);
		give_back(subscription, events, n, now, "the lease ended");
		n = read_stretch(subscription, &deliveries[i], 0, &events);
		give_back(subscription, events, n, now, "the lease ended");
		delete_delivery(subscription, deliveries[i].token);
	}
	if (any)
		wake_waiting(subscription);
	return any;
}

/* ----------------------------------------------------------------
 *		Poll
 * ----------------------------------------------------------------
 */

/* A subscription without handler that the caller may use, locked. */
static Subscription *
lock_subscription(const char *name)
{
	Subscription *subscription = subscription_lock_mine(name);

	if (subscription->handler != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("subscription \"%s\" has a handler", name),
				 errdetail("Its events are handed to %s by coord.", subscription->handler)));
	return subscription;
}

static int64
lease_us(FunctionCallInfo fcinfo, int argument)
{
	int64		us;

	check_required(fcinfo, argument, "lease");
	us = clock_interval_us(PG_GETARG_INTERVAL_P(argument));
	if (us <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("lease must be positive")));
	return us;
}

static int64
next_token(void)
{
	static Statement next = {
		"SELECT nextval('coord_internal.subscription_token')", 0, {0}
	};
	QueryScope	scope;
	int64		token;

	query_begin(&scope);
	query_run(&next, NULL, NULL, 0);
	token = query_int8(0, 1);
	query_end(&scope);
	return token;
}

static void
insert_delivery(const Subscription *subscription, const Delivery *delivery)
{
	static Statement insert = {
		"INSERT INTO coord_internal.subscription_delivery (subscription, token, after_pos, upto_pos, aside, lease_until)"
		" VALUES ($1, $2, $3, $4, $5, $6)",
		6, {INT8OID, INT8OID, INT8OID, INT8OID, INT8ARRAYOID, TIMESTAMPTZOID}
	};
	QueryScope	scope;
	Datum		values[6];
	bool		nulls[6] = {false};

	query_begin(&scope);
	values[0] = Int64GetDatum(subscription->id);
	values[1] = Int64GetDatum(delivery->token);
	values[2] = Int64GetDatum(delivery->after);
	values[3] = Int64GetDatum(delivery->upto);
	nulls[4] = delivery->naside == 0;
	values[4] = nulls[4] ? (Datum) 0 : query_int8_array(delivery->aside, delivery->naside);
	values[5] = TimestampTzGetDatum(delivery->lease_until);
	query_run(&insert, values, nulls, 0);
	query_end(&scope);
}

/* Mark events that were put aside as in hand. */
static void
take(const Subscription *subscription, const Event *events, int count, int64 token)
{
	static Statement update = {
		"UPDATE coord_internal.subscription_event SET token = $2, due_at = NULL"
		" WHERE subscription = $1 AND pos = ANY ($3)",
		3, {INT8OID, INT8OID, INT8ARRAYOID}
	};
	int64	   *positions = palloc(sizeof(int64) * count);
	QueryScope	scope;
	Datum		values[3];

	for (int i = 0; i < count; i++)
		positions[i] = events[i].pos;
	query_begin(&scope);
	values[0] = Int64GetDatum(subscription->id);
	values[1] = Int64GetDatum(token);
	values[2] = query_int8_array(positions, count);
	query_run(&update, values, NULL, 0);
	query_end(&scope);
}

/*
 * New events after the cursor, at most "max"; those of keys in hand or put aside are put
 * aside.  Moves the cursor, fills "delivery" and returns how many.  "changed" is set when
 * something was written.
 */
static int
take_new(Subscription *subscription, HTAB *keys, int max, Delivery *delivery, Event **events, bool *changed)
{
	bool		by_key = subscription->on_error == ON_ERROR_PARK_KEY;
	bool		has_items = subscription_has_items(subscription);
	int64		horizon;
	int64		reached;
	int			count;
	int			kept = 0;

	delivery->after = delivery->upto = subscription->position;
	if (max == 0 || (subscription->on_error == ON_ERROR_STOP && has_items))
		return 0;
	horizon = event_horizon();
	if (horizon <= subscription->position)
		return 0;
	count = subscription_read(subscription, subscription->position, horizon, max, events, &reached);
	delivery->aside = palloc(sizeof(int64) * Max(count, 1));
	for (int i = 0; i < count; i++)
	{
		const Event *event = &(*events)[i];

		if (by_key && event->key != NULL &&
			((keys != NULL && hash_search(keys, event->key, HASH_FIND, NULL) != NULL) ||
			 (has_items && subscription_key_is_blocked(subscription, event->key))))
		{
			subscription_put_aside(subscription, event, false);
			delivery->aside[delivery->naside++] = event->pos;
			has_items = true;
		}
		else
			(*events)[kept++] = *event;
	}
	delivery->upto = reached;
	if (count > 0 || reached - subscription->position > SUBSCRIPTION_IDLE_POSITIONS)
	{
		subscription_move(subscription, reached);
		*changed = true;
	}
	return kept;
}

/* One event of the result. */
static void
return_event(ReturnSetInfo *result, int64 token, const Event *event)
{
	/* Columns of coord.event. */
	static const int fields[] = {1, 4, 5, 6, 7, 2, 3, 8, 11, 12, 13};
	Datum		values[13];
	bool		nulls[13] = {false};

	values[0] = Int64GetDatum(token);
	for (int i = 0; i < lengthof(fields); i++)
		values[i + 1] = event_field(event, fields[i], &nulls[i + 1]);
	values[12] = Int32GetDatum(event->attempts + 1);
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/*
 * Take what there is, at most "max"; returns how many.  When something was written the
 * lock is kept, and "changed" set; else it is given back.
 */
static int
poll_once(const char *name, int max, int64 lease, ReturnSetInfo *result, bool *changed)
{
	Subscription *subscription = lock_subscription(name);
	Delivery   *deliveries;
	Delivery	delivery = {0};
	Event	   *items;
	Event	   *events;
	HTAB	   *keys;
	int			nitems = 0;
	int			nevents = 0;
	int			count;

	if (!subscription->paused)
	{
		count = read_deliveries(subscription, 0, &deliveries);
		if (expire(subscription, deliveries, count))
		{
			*changed = true;
			count = read_deliveries(subscription, 0, &deliveries);
		}
		keys = keys_in_hand(subscription, deliveries, count);
		nitems = subscription_items(subscription, max, &items);
		nevents = take_new(subscription, keys, max - nitems, &delivery, &events, changed);
	}
	if (nitems + nevents == 0)
	{
		if (!*changed)
			subscription_unlock(subscription->id);
		return 0;
	}
	delivery.token = next_token();
	delivery.lease_until = clock_now() + lease;
	if (nitems > 0)
		take(subscription, items, nitems, delivery.token);
	insert_delivery(subscription, &delivery);
	*changed = true;

	/* Those that were put aside are older, mostly. */
	for (int i = 0, j = 0; i < nitems || j < nevents;)
	{
		if (j == nevents || (i < nitems && items[i].pos < events[j].pos))
			return_event(result, delivery.token, &items[i++]);
		else
			return_event(result, delivery.token, &events[j++]);
	}
	return nitems + nevents;
}

/*
 * Is there anything to poll, or when may there be, for all that is known?  Returns 0 for
 * now, DT_NOEND for never.
 */
TimestampTz
subscription_ready_at(const char *name)
{
	static Statement read = {
		"SELECT least((SELECT min(lease_until) FROM coord_internal.subscription_delivery WHERE subscription = $1),"
		" (SELECT min(due_at) FROM coord_internal.subscription_event WHERE subscription = $1))",
		1, {INT8OID}
	};
	Subscription *subscription = subscription_by_name(name);
	QueryScope	scope;
	Datum		value;
	TimestampTz at;
	Event	   *events;
	int64		reached;
	int64		horizon;

	if (subscription == NULL || subscription->paused)
		return DT_NOEND;
	value = Int64GetDatum(subscription->id);
	query_begin(&scope);
	query_run_latest(&read, &value, NULL, 1);
	at = query_time(0, 1);
	query_end(&scope);
	if (at != 0 && at <= clock_now())
		return 0;
	horizon = event_horizon();
	if (horizon > subscription->position &&
		!(subscription->on_error == ON_ERROR_STOP && subscription_has_items(subscription)) &&
		(subscription_read(subscription, subscription->position, horizon, 100, &events, &reached) > 0 ||
		 reached < horizon))
		return 0;
	return at == 0 || clock_is_set() ? DT_NOEND : at;
}

/* coord.subscription_poll(name, max_events, lease, timeout) */
Datum
coord_subscription_poll(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	char	   *name = check_text(fcinfo, 0, "name");
	int64		lease = lease_us(fcinfo, 2);
	int64		wait = PG_ARGISNULL(3) ? 0 : clock_interval_us(PG_GETARG_INTERVAL_P(3));
	TimestampTz end = GetCurrentTimestamp() + Min(wait, guc_max_function_wait * INT64CONST(1000));
	bool		changed = false;
	int			max;

	check_required(fcinfo, 1, "max_events");
	max = PG_GETARG_INT32(1);
	if (max < 1 || max > SUBSCRIPTION_MAX_BATCH)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_events must be from 1 to %d", SUBSCRIPTION_MAX_BATCH)));
	if (wait < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("timeout must not be negative")));
	installation_check();
	check_not_in_recovery("coord.subscription_poll()");
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	for (;;)
	{
		if (poll_once(name, max, lease, result, &changed) > 0 || changed ||
			GetCurrentTimestamp() >= end)
			break;
		event_wait_begin();
		(void) event_wait_until(Min(end, subscription_ready_at(name)));
		event_wait_end();
	}
	if (changed)
		ForceSyncCommit();
	return (Datum) 0;
}

/* The caller may use it, and it has no handler. */
void
subscription_check_pollable(const char *name)
{
	subscription_unlock(lock_subscription(name)->id);
}

/* ----------------------------------------------------------------
 *		Ack, nack, extend
 * ----------------------------------------------------------------
 */

/* The delivery of a token; its lease may have ended, if nobody has polled since. */
static Delivery *
find_delivery(FunctionCallInfo fcinfo, const Subscription *subscription)
{
	Delivery   *delivery;

	if (PG_GETARG_INT64(1) == 0 || read_deliveries(subscription, PG_GETARG_INT64(1), &delivery) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_COORD_LEASE_LOST),
				 errmsg("token " INT64_FORMAT " of subscription \"%s\" is stale", PG_GETARG_INT64(1),
						subscription->name),
				 errdetail("It was acknowledged or given back, or its lease has ended and its events are delivered again."),
				 errhint("What was done for these events must be harmless when it is done again.")));
	return delivery;
}

/* coord.subscription_ack(name, token, upto) */
Datum
coord_subscription_ack(PG_FUNCTION_ARGS)
{
	char	   *name = check_text(fcinfo, 0, "name");
	int64		upto = PG_ARGISNULL(2) ? PG_INT64_MAX : PG_GETARG_INT64(2);
	Subscription *subscription;
	Delivery   *delivery;
	Event	   *events;
	TimestampTz now = clock_now();
	int			count;
	bool		all = true;

	check_required(fcinfo, 1, "token");
	installation_check();
	subscription = lock_subscription(name);
	delivery = find_delivery(fcinfo, subscription);
	count = read_taken(subscription, delivery->token, &events);
	for (int i = 0; i < count; i++)
	{
		if (events[i].pos <= upto)
			subscription_item_done(subscription, events[i].pos);
		else
		{
			give_back(subscription, &events[i], 1, now, NULL);
			all = false;
		}
	}
	if (upto < delivery->upto)
	{
		count = read_stretch(subscription, delivery, upto, &events);
		give_back(subscription, events, count, now, NULL);
		all = all && count == 0;
	}
	delete_delivery(subscription, delivery->token);
	wake_waiting(subscription);
	event_wake_waiters();
	PG_RETURN_BOOL(all);
}

/* Is it one of these?  Positions are few. */
static bool
is_listed(const Datum *positions, int count, int64 pos)
{
	for (int i = 0; i < count; i++)
	{
		if (DatumGetInt64(positions[i]) == pos)
			return true;
	}
	return false;
}

static int
keep_listed(Event *events, int count, const Datum *positions, int npositions)
{
	int			kept = 0;

	for (int i = 0; i < count; i++)
	{
		if (is_listed(positions, npositions, events[i].pos))
			events[kept++] = events[i];
	}
	return kept;
}

/* Some of a stretch were given back: it goes on without them. */
static void
leave_out(const Subscription *subscription, const Delivery *delivery, const Event *events, int count)
{
	static Statement update = {
		"UPDATE coord_internal.subscription_delivery SET aside = coalesce(aside, '{}') || $3"
		" WHERE subscription = $1 AND token = $2",
		3, {INT8OID, INT8OID, INT8ARRAYOID}
	};
	int64	   *positions = palloc(sizeof(int64) * Max(count, 1));
	QueryScope	scope;
	Datum		values[3];

	for (int i = 0; i < count; i++)
		positions[i] = events[i].pos;
	query_begin(&scope);
	values[0] = Int64GetDatum(subscription->id);
	values[1] = Int64GetDatum(delivery->token);
	values[2] = query_int8_array(positions, count);
	query_run(&update, values, NULL, 0);
	query_end(&scope);
}

/* coord.subscription_nack(name, token, positions, retry_in) */
Datum
coord_subscription_nack(PG_FUNCTION_ARGS)
{
	char	   *name = check_text(fcinfo, 0, "name");
	bool		all = PG_ARGISNULL(2);
	int64		delay = PG_ARGISNULL(3) ? 0 : clock_interval_us(PG_GETARG_INTERVAL_P(3));
	TimestampTz due_at;
	Subscription *subscription;
	Delivery   *delivery;
	Event	   *taken;
	Event	   *events;
	Datum	   *positions = NULL;
	bool	   *nulls;
	int			npositions = 0;
	int			ntaken;
	int			count;

	check_required(fcinfo, 1, "token");
	if (delay < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("retry_in must not be negative")));
	if (!all)
		deconstruct_array(PG_GETARG_ARRAYTYPE_P(2), INT8OID, 8, true, TYPALIGN_DOUBLE,
						  &positions, &nulls, &npositions);
	for (int i = 0; i < npositions; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("positions must not contain null")));
	}
	installation_check();
	subscription = lock_subscription(name);
	delivery = find_delivery(fcinfo, subscription);
	due_at = clock_now() + delay;
	ntaken = read_taken(subscription, delivery->token, &taken);
	count = read_stretch(subscription, delivery, 0, &events);
	if (!all)
	{
		ntaken = keep_listed(taken, ntaken, positions, npositions);
		count = keep_listed(events, count, positions, npositions);
		if (ntaken + count < npositions)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%d of the positions are not in hand with token " INT64_FORMAT,
							npositions - ntaken - count, delivery->token)));
	}
	give_back(subscription, taken, ntaken, due_at, "given back by the consumer");
	give_back(subscription, events, count, due_at, "given back by the consumer");
	if (all)
		delete_delivery(subscription, delivery->token);
	else
		leave_out(subscription, delivery, events, count);
	wake_waiting(subscription);
	event_wake_waiters();
	PG_RETURN_BOOL(ntaken + count > 0);
}

/* coord.subscription_extend(name, token, lease) */
Datum
coord_subscription_extend(PG_FUNCTION_ARGS)
{
	static Statement update = {
		"UPDATE coord_internal.subscription_delivery SET lease_until = $3 WHERE subscription = $1 AND token = $2",
		3, {INT8OID, INT8OID, TIMESTAMPTZOID}
	};
	char	   *name = check_text(fcinfo, 0, "name");
	int64		lease = lease_us(fcinfo, 2);
	Subscription *subscription;
	Delivery   *delivery;
	QueryScope	scope;
	Datum		values[3];

	check_required(fcinfo, 1, "token");
	installation_check();
	subscription = lock_subscription(name);
	delivery = find_delivery(fcinfo, subscription);
	query_begin(&scope);
	values[0] = Int64GetDatum(subscription->id);
	values[1] = Int64GetDatum(delivery->token);
	values[2] = TimestampTzGetDatum(clock_now() + lease);
	query_run(&update, values, NULL, 0);
	query_end(&scope);
	PG_RETURN_TIMESTAMPTZ(DatumGetTimestampTz(values[2]));
}
