/*-------------------------------------------------------------------------
 *
 * event_log.c
 *	  The table of published events: its partitions, and how a row gets in.
 *
 * A partition has the positions from n * 2^20 to below (n + 1) * 2^20, and is called
 * event_log_n.  A row goes straight into its partition, formed and inserted here: by
 * SPI a publish would cost a quarter more than the bare INSERT by hand that bench/event
 * measures it against.
 *
 * Housekeeping makes the next partition before it is needed.  When none was (there is
 * no worker, or a transaction publishes that much), the publisher makes it, and others
 * that need it too wait for his transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/access.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/guc.h"
#include "base/installation.h"
#include "base/partition.h"
#include "base/query.h"
#include "event/event.h"
#include "event/event_log.h"
#include "event/event_shared.h"

PG_FUNCTION_INFO_V1(coord_publish);
PG_FUNCTION_INFO_V1(coord_publish_many);

#define PARTITION_BITS 20
#define PARTITION_SIZE (INT64CONST(1) << PARTITION_BITS)

#define LOG_COLUMNS 10

/* The partition used last; owned by find_partition(). */
static int64 known_number = -1;
static Oid	known_partition = InvalidOid;
static Oid	known_namespace = InvalidOid;

/*
 * Make a partition unless somebody else just has.  Who may not wait for another's
 * transaction that is about to make one goes without.
 */
static void
make_partition(int64 number, bool wait)
{
	QueryScope	scope;
	int			guc_level;
	char	   *name = psprintf("event_log_" INT64_FORMAT, number);
	Oid			parent = get_relname_relid("event_log", get_namespace_oid("coord_internal", false));

	if (wait)
		LockRelationOid(parent, ShareUpdateExclusiveLock);
	else if (!ConditionalLockRelationOid(parent, ShareUpdateExclusiveLock))
		return;
	query_begin(&scope);
	guc_level = partition_neutral_settings();
	if (!OidIsValid(get_relname_relid(name, get_namespace_oid("coord_internal", false))))
	{
		query_utility(psprintf("CREATE TABLE coord_internal.%s (LIKE coord_internal.event_log)", name));
		query_utility(psprintf("ALTER TABLE coord_internal.%s ADD PRIMARY KEY (pos)", name));
		query_utility(psprintf("ALTER TABLE coord_internal.event_log ATTACH PARTITION coord_internal.%s"
							   " FOR VALUES FROM (" INT64_FORMAT ") TO (" INT64_FORMAT ")",
							   name, number * PARTITION_SIZE, (number + 1) * PARTITION_SIZE));
	}
	AtEOXact_GUC(true, guc_level);
	query_end(&scope);
}

static Oid
look_for_partition(int64 number)
{
	char		name[NAMEDATALEN];

	snprintf(name, sizeof(name), "event_log_" INT64_FORMAT, number);
	return get_relname_relid(name, get_namespace_oid("coord_internal", false));
}

/* The partition of a position, open and locked. */
static Relation
open_partition(int64 position)
{
	int64		number = position >> PARTITION_BITS;
	Oid			namespace = get_namespace_oid("coord_internal", false);
	Relation	relation = NULL;

	if (number == known_number && namespace == known_namespace)
		relation = try_relation_open(known_partition, RowExclusiveLock);
	if (relation != NULL)
		return relation;
	known_number = -1;
	known_partition = look_for_partition(number);
	if (!OidIsValid(known_partition))
	{
		make_partition(number, true);
		known_partition = look_for_partition(number);
	}
	relation = table_open(known_partition, RowExclusiveLock);
	known_namespace = namespace;
	known_number = number;
	return relation;
}

pg_uuid_t *
event_random_id(void)
{
	pg_uuid_t  *uuid = palloc(UUID_LEN);

	if (!pg_strong_random(uuid->data, UUID_LEN))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random values")));
	uuid->data[6] = (uuid->data[6] & 0x0f) | 0x40;
	uuid->data[8] = (uuid->data[8] & 0x3f) | 0x80;
	return uuid;
}

/* coord.correlation_id; NULL when it is not set. */
pg_uuid_t *
event_default_correlation(void)
{
	if (guc_correlation_id == NULL || *guc_correlation_id == '\0')
		return NULL;
	return DatumGetUUIDP(DirectFunctionCall1(uuid_in, CStringGetDatum(guc_correlation_id)));
}

/*
 * The event that is being handled; owned by subscription_turn.c, which sets it around
 * each call of a handler.
 */
const pg_uuid_t *event_cause = NULL;

/*
 * Insert one event; returns its position.  The caller has called
 * event_publisher_enter() in this transaction.
 */
int64
event_log_insert(const PublishedEvent *event, TimestampTz at, Oid owner)
{
	int64		position = event_position_next();
	Relation	relation = open_partition(position);
	Datum		values[LOG_COLUMNS];
	bool		nulls[LOG_COLUMNS] = {false};
	HeapTuple	tuple;

	values[0] = Int64GetDatum(position);
	values[1] = TimestampTzGetDatum(at);
	values[2] = ObjectIdGetDatum(owner);
	values[3] = PointerGetDatum(event->type);
	values[4] = PointerGetDatum(event->key);
	nulls[4] = event->key == NULL;
	values[5] = PointerGetDatum(event->data);
	values[6] = PointerGetDatum(event->metadata);
	nulls[6] = event->metadata == NULL;
	values[7] = UUIDPGetDatum(event->event_id ? event->event_id : event_random_id());
	values[8] = UUIDPGetDatum(event->correlation_id);
	nulls[8] = event->correlation_id == NULL;
	values[9] = UUIDPGetDatum(event_cause);
	nulls[9] = event_cause == NULL;
	tuple = heap_form_tuple(RelationGetDescr(relation), values, nulls);
	CatalogTupleInsert(relation, tuple);
	heap_freetuple(tuple);
	table_close(relation, NoLock);
	return position;
}

/* A type of events: a name in which a star would be a pattern. */
void
event_check_type(const char *type)
{
	check_name("type", type);
	if (strchr(type, '*') != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid event type \"%s\"", type),
				 errdetail("A star stands for any rest in the pattern of a subscription.")));
}

static text *
get_type(FunctionCallInfo fcinfo, int argument)
{
	event_check_type(check_text(fcinfo, argument, "type"));
	return PG_GETARG_TEXT_PP(argument);
}

/* coord.publish(type, data, key, correlation_id, metadata, event_id) */
Datum
coord_publish(PG_FUNCTION_ARGS)
{
	PublishedEvent event = {0};
	char	   *key = check_optional_text(fcinfo, 2);

	event.type = get_type(fcinfo, 0);
	check_required(fcinfo, 1, "data");
	event.data = PG_GETARG_JSONB_P(1);
	if (key != NULL)
	{
		check_name("key", key);
		event.key = PG_GETARG_TEXT_PP(2);
	}
	event.correlation_id = PG_ARGISNULL(3) ? event_default_correlation() : PG_GETARG_UUID_P(3);
	event.metadata = PG_ARGISNULL(4) ? NULL : PG_GETARG_JSONB_P(4);
	event.event_id = PG_ARGISNULL(5) ? NULL : PG_GETARG_UUID_P(5);
	installation_check();
	event_publisher_enter();
	access_note_role(GetUserId());
	PG_RETURN_INT64(event_log_insert(&event, clock_now(), GetUserId()));
}

/* coord.publish_many(type, data, keys, correlation_id) */
Datum
coord_publish_many(PG_FUNCTION_ARGS)
{
	PublishedEvent event = {0};
	Datum	   *documents;
	Datum	   *keys = NULL;
	bool	   *missing;
	bool	   *unkeyed = NULL;
	int			count;
	int			nkeys;
	int64		position = 0;
	TimestampTz now = clock_now();

	event.type = get_type(fcinfo, 0);
	check_required(fcinfo, 1, "data");
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), JSONBOID, -1, false, TYPALIGN_INT,
					  &documents, &missing, &count);
	if (!PG_ARGISNULL(2))
	{
		deconstruct_array(PG_GETARG_ARRAYTYPE_P(2), TEXTOID, -1, false, TYPALIGN_INT,
						  &keys, &unkeyed, &nkeys);
		if (nkeys != count)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("there must be as many keys as events"),
					 errdetail("There are %d keys and %d events.", nkeys, count)));
	}
	for (int i = 0; i < count; i++)
	{
		if (missing[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("data must not contain null")));
		if (keys != NULL && !unkeyed[i])
			check_name("key", TextDatumGetCString(keys[i]));
	}
	event.correlation_id = PG_ARGISNULL(3) ? event_default_correlation() : PG_GETARG_UUID_P(3);
	installation_check();
	if (count == 0)
		PG_RETURN_NULL();
	event_publisher_enter();
	access_note_role(GetUserId());
	for (int i = 0; i < count; i++)
	{
		CHECK_FOR_INTERRUPTS();
		event.data = DatumGetJsonbP(documents[i]);
		event.key = keys != NULL && !unkeyed[i] ? DatumGetTextPP(keys[i]) : NULL;
		position = event_log_insert(&event, now, GetUserId());
	}
	PG_RETURN_INT64(position);
}

/* ----------------------------------------------------------------
 *		Housekeeping
 * ----------------------------------------------------------------
 */

/* A retention has as many partitions at least, so that it is kept to an eighth. */
#define FRACTION 8

/*
 * The position that is handed out next; 0: none was yet.  Then there is no partition to
 * make either: it could be in the way of a restore, which makes its own.
 */
static int64
next_position(void)
{
	static Statement read = {
		"SELECT CASE WHEN is_called THEN last_value + 1 ELSE 0 END FROM coord_internal.event_position",
		0, {0}
	};
	QueryScope	scope;
	int64		next;

	query_begin(&scope);
	query_run_latest(&read, NULL, NULL, 1);
	next = query_int8(0, 1);
	query_end(&scope);
	return next;
}

/* When the first, or the last, event of a partition was published; 0: it has none. */
static TimestampTz
published_at(int64 number, bool last)
{
	QueryScope	scope;
	TimestampTz result = 0;

	query_begin(&scope);
	if (SPI_execute(psprintf("SELECT published_at FROM coord_internal.event_log_" INT64_FORMAT
							 " ORDER BY pos %s LIMIT 1", number, last ? "DESC" : ""), true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read a partition of the event log");
	if (SPI_processed > 0)
		result = query_time(0, 1);
	query_end(&scope);
	return result;
}

/*
 * Where little is published a partition would last for longer than the retention: then
 * positions go on in the next one.  Nobody may take a position meanwhile, or it would be
 * handed out twice: only while no transaction that has taken one is open.  Returns
 * whether it was done.
 */
static bool
skip_rest(int64 number)
{
	static Statement skip = {
		"SELECT setval('coord_internal.event_position', $1) FROM coord_internal.event_position"
		" WHERE last_value < $1",
		1, {INT8OID}
	};
	Oid			sequence = get_relname_relid("event_position", get_namespace_oid("coord_internal", false));
	QueryScope	scope;
	Datum		value = Int64GetDatum((number + 1) * PARTITION_SIZE - 1);
	bool		skipped;

	if (!ConditionalLockRelationOid(sequence, ShareRowExclusiveLock))
		return false;
	query_begin(&scope);
	skipped = query_run(&skip, &value, NULL, 0) > 0;
	query_end(&scope);
	return skipped;
}

/* The lowest partition there is; -1: none. */
static int64
first_partition(void)
{
	static Statement read = {
		"SELECT coalesce(min(substring(c.relname FROM '[0-9]+$')::bigint), -1) FROM pg_inherits i"
		" JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'coord_internal.event_log'::regclass",
		0, {0}
	};
	QueryScope	scope;
	int64		result;

	query_begin(&scope);
	query_run_latest(&read, NULL, NULL, 1);
	result = query_int8(0, 1);
	query_end(&scope);
	return result;
}

/* Does a subscription still have to read what is below a position? */
static bool
is_needed_below(int64 position)
{
	static Statement read = {
		"SELECT FROM coord_internal.subscription s WHERE"
		" (SELECT c.position FROM coord_internal.subscription_cursor c WHERE c.subscription = s.id"
		"  ORDER BY c.move DESC LIMIT 1) < $1 - 1"
		" OR EXISTS (SELECT FROM coord_internal.subscription_delivery d"
		"  WHERE d.subscription = s.id AND d.after_pos < $1 - 1 AND d.upto_pos > d.after_pos)",
		1, {INT8OID}
	};
	QueryScope	scope;
	Datum		value = Int64GetDatum(position);
	bool		found;

	query_begin(&scope);
	found = query_run_latest(&read, &value, NULL, 1) > 0;
	query_end(&scope);
	return found;
}

/*
 * Drop a partition, unless somebody is using it or the log: nobody waits for us, nor
 * we for anybody.  A prepared publisher that has events in it has a lock on it.
 */
static bool
drop_partition(int64 number)
{
	Oid			namespace = get_namespace_oid("coord_internal", false);
	QueryScope	scope;

	if (!ConditionalLockRelationOid(get_relname_relid("event_log", namespace), AccessExclusiveLock) ||
		!ConditionalLockRelationOid(look_for_partition(number), AccessExclusiveLock))
		return false;
	query_begin(&scope);
	query_utility(psprintf("DROP TABLE coord_internal.event_log_" INT64_FORMAT, number));
	query_end(&scope);
	return true;
}

/*
 * The next partition is made before the present one is full, and what is older than
 * coord.event_retention is dropped, a partition at a time.  Runs its own transactions.
 */
void
event_housekeeping(void)
{
	int64		retention_us = guc_event_retention * USECS_PER_MINUTE;
	bool		again = true;

	while (again)
	{
		again = false;
		StartTransactionCommand();
		if (installation_lock(AccessShareLock))
		{
			int64		next;
			int64		number;
			int64		first;
			TimestampTz at;

			PushActiveSnapshot(GetTransactionSnapshot());
			subscription_housekeeping();
			next = next_position();
			number = next >> PARTITION_BITS;
			for (int64 wanted = number; next != 0 && wanted <= number + 1; wanted++)
			{
				if (!OidIsValid(look_for_partition(wanted)))
					make_partition(wanted, false);
			}
			at = OidIsValid(look_for_partition(number)) ? published_at(number, false) : 0;
			again = at != 0 && at < clock_now() - retention_us / FRACTION && skip_rest(number);
			first = first_partition();
			if (!again && first >= 0 && first < number)
			{
				at = published_at(first, true);
				again = at < clock_now() - retention_us &&
					!is_needed_below((first + 1) * PARTITION_SIZE) && drop_partition(first);
			}
			PopActiveSnapshot();
		}
		CommitTransactionCommand();
	}
}
