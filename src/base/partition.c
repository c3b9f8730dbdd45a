/*-------------------------------------------------------------------------
 *
 * partition.c
 *	  Partitions by time: made ahead, dropped whole.
 *
 * Partitions are made at run time as tables of their own with their own key,
 * then attached, which locks the parent against nothing but another one that
 * does the same.  They are ranges of time, an eighth of the retention long; one
 * beyond the present is always there.  A partition whose end is older than the
 * retention is dropped, unless its owner still wants it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/installation.h"
#include "base/partition.h"
#include "base/query.h"

#define FRACTION 8

/* How far a pass over expired partitions has come. */
typedef struct Pass
{
	int			which;			/* the parent that it is at */
	TimestampTz kept;			/* what ends until then was refused there */
} Pass;

/* Length of a new partition. */
static int64
partition_width(const PartitionSet *set)
{
	return Max(*set->retention * USECS_PER_MINUTE / FRACTION, USECS_PER_MINUTE);
}

/* Does this process know that what is written now has a partition to go to? */
bool
partition_is_ready(const PartitionSet *set)
{
	TimestampTz now = clock_now();

	return set->covered_from <= now && now < set->covered_until &&
		set->covered_retention == *set->retention &&
		set->covered_namespace == get_namespace_oid("coord_internal", true);
}

/*
 * The settings under which bounds are written and read and tables are made must
 * not be those of the caller's session.  Returns the level to go back to.
 */
int
partition_neutral_settings(void)
{
	static const struct
	{
		const char *name;
		const char *value;
	}			settings[] =
	{
		{"DateStyle", "ISO, YMD"},
		{"TimeZone", "UTC"},
		{"default_table_access_method", "heap"},
		{"default_tablespace", ""},
	};
	int			level = NewGUCNestLevel();

	for (int i = 0; i < lengthof(settings); i++)
		(void) set_config_option(settings[i].name, settings[i].value,
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
								 true, 0, false);
	return level;
}

/* Partitions made in what is rolled back are not there. */
static void
xact_callback(XactEvent event, void *arg)
{
	PartitionSet *set = arg;

	if (event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		set->covered_until = 0;
}

static void
subxact_callback(SubXactEvent event, SubTransactionId mine,
				 SubTransactionId parent, void *arg)
{
	PartitionSet *set = arg;

	if (event == SUBXACT_EVENT_ABORT_SUB)
		set->covered_until = 0;
}

static char *
quote_time(TimestampTz time)
{
	return quote_literal_cstr(DatumGetCString(DirectFunctionCall1(timestamptz_out,
																  TimestampTzGetDatum(time))));
}

/* Partitions of a parent as rows of (name, from, to). */
#define PARTITIONS \
	"SELECT c.relname::text," \
	" substring(pg_get_expr(c.relpartbound, c.oid) FROM 'FROM \\(''([^'']+)''\\)')::timestamptz," \
	" substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \\(''([^'']+)''\\)')::timestamptz" \
	" FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid" \
	" WHERE i.inhparent = to_regclass('coord_internal.' || $1)"

/*
 * Is there a partition of "parent" at "at"?  Else make one that fits between
 * its neighbours.  Returns its end.  The parent is locked by the caller if
 * "make" is set.
 */
static TimestampTz
cover(const PartitionSet *set, const PartitionParent *parent, TimestampTz at, bool make)
{
	static Statement read = {PARTITIONS, 1, {TEXTOID}};
	int64		width = partition_width(set);
	TimestampTz from = at - at % width;
	TimestampTz to = from + width;
	Datum		value;
	uint64		rows;
	char	   *name;
	struct pg_tm tm;
	fsec_t		fsec;
	int			tz;

	value = CStringGetTextDatum(parent->name);
	rows = query_run_latest(&read, &value, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
	{
		bool		isnull;
		TimestampTz start = DatumGetTimestampTz(query_value(i, 2, &isnull));
		TimestampTz end = DatumGetTimestampTz(query_value(i, 3, &isnull));

		if (start <= at && at < end)
			return end;
		if (end <= at)
			from = Max(from, end);
		else
			to = Min(to, start);
	}
	if (!make)
		return 0;

	if (timestamp2tm(from, &tz, &tm, &fsec, NULL, NULL) != 0)
		elog(ERROR, "timestamp out of range");
	name = psprintf("coord_internal.%s_%04d%02d%02d_%02d%02d%02d_%06d", parent->name,
					tm.tm_year, tm.tm_mon, tm.tm_mday, tm.tm_hour, tm.tm_min,
					tm.tm_sec, (int) fsec);
	query_utility(psprintf("CREATE TABLE %s (LIKE coord_internal.%s INCLUDING DEFAULTS INCLUDING CONSTRAINTS)",
						   name, parent->name));
	query_utility(psprintf("ALTER TABLE %s %s", name, parent->index));
	query_utility(psprintf("ALTER TABLE coord_internal.%s ATTACH PARTITION %s FOR VALUES FROM (%s) TO (%s)",
						   parent->name, name, quote_time(from), quote_time(to)));
	return to;
}

/*
 * Make sure that what is written now and in a while has a partition to go to.
 * Costs nothing while that is known; else writes, so it needs a transaction
 * that may.  Without "ahead_too" only what is needed now is made: until the end
 * of this transaction others wait to make theirs, and a user's may be long.
 */
void
partition_ensure(PartitionSet *set, bool ahead_too)
{
	TimestampTz now = clock_now();
	int64		ahead = partition_width(set) / 2;
	QueryScope	scope;
	int			guc_level;

	if (partition_is_ready(set))
		return;
	if (!set->callbacks_registered)
	{
		RegisterXactCallback(xact_callback, set);
		RegisterSubXactCallback(subxact_callback, set);
		set->callbacks_registered = true;
	}

	query_begin(&scope);
	guc_level = partition_neutral_settings();
	set->covered_until = 0;
	for (int i = 0; i < set->nparents; i++)
	{
		const PartitionParent *parent = &set->parents[i];
		TimestampTz times[2];

		times[0] = now;
		times[1] = now + ahead;
		for (int j = 0; j < (ahead_too ? 2 : 1); j++)
		{
			TimestampTz end = cover(set, parent, times[j], false);

			if (end == 0)
			{
				query_utility(psprintf("LOCK TABLE coord_internal.%s IN SHARE UPDATE EXCLUSIVE MODE",
									   parent->name));
				end = cover(set, parent, times[j], true);
			}
			if (j == 0 && (set->covered_until == 0 || end < set->covered_until))
				set->covered_until = end;
		}
	}
	AtEOXact_GUC(true, guc_level);
	query_end(&scope);
	set->covered_from = now;

	/* Look again well before the end, when the next one is to be made. */
	if (ahead_too)
		set->covered_until = Min(set->covered_until, now + ahead / 2);
	set->covered_retention = *set->retention;
	set->covered_namespace = get_namespace_oid("coord_internal", false);
}

/* The partition to drop next, one of the parent that the pass is then at. */
static char *
find_expired(const PartitionSet *set, Pass *pass, MemoryContext context, TimestampTz *until)
{
	static Statement read = {
		"SELECT name, until FROM (" PARTITIONS ") p (name, since, until)"
		" WHERE until <= $2 AND until > $3"
		" ORDER BY until LIMIT 1",
		3, {TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID}
	};
	TimestampTz cutoff = clock_now() - *set->retention * USECS_PER_MINUTE;

	for (; pass->which < set->nparents; pass->which++, pass->kept = DT_NOBEGIN)
	{
		QueryScope	scope;
		Datum		values[3];
		char	   *name = NULL;
		int			guc_level;

		query_begin(&scope);
		guc_level = partition_neutral_settings();
		values[0] = CStringGetTextDatum(set->parents[pass->which].name);
		values[1] = TimestampTzGetDatum(cutoff);
		values[2] = TimestampTzGetDatum(pass->kept);
		if (query_run(&read, values, NULL, 1) > 0)
		{
			name = query_text(context, 0, 1);
			*until = query_time(0, 2);
		}
		AtEOXact_GUC(true, guc_level);
		query_end(&scope);
		if (name != NULL)
			return name;
	}
	return NULL;
}

/* One transaction of the pass; false when there was nothing left to drop. */
static bool
drop_one(const PartitionSet *set, Pass *pass)
{
	const PartitionParent *parent;
	QueryScope	scope;
	TimestampTz until;
	char	   *name;

	if (!installation_lock(AccessShareLock))
		return false;
	name = find_expired(set, pass, CurrentMemoryContext, &until);
	if (name == NULL)
		return false;
	parent = &set->parents[pass->which];
	query_begin(&scope);
	name = psprintf("coord_internal.%s", quote_identifier(name));

	/* Never wait for a reader, and never make others wait behind us. */
	query_utility(psprintf("LOCK TABLE ONLY coord_internal.%s IN ACCESS EXCLUSIVE MODE NOWAIT",
						   parent->name));
	query_utility(psprintf("LOCK TABLE %s IN ACCESS EXCLUSIVE MODE NOWAIT", name));
	if (parent->before_drop == NULL || parent->before_drop(name))
		query_utility(psprintf("DROP TABLE %s", name));
	else
		pass->kept = until;
	query_end(&scope);
	return true;
}

/*
 * Drop expired partitions, the oldest of each parent first.  Runs its own
 * transactions; a partition that is in use is left for the next time.
 */
void
partition_drop_expired(const PartitionSet *set)
{
	MemoryContext context = CurrentMemoryContext;
	Pass		pass = {0, DT_NOBEGIN};
	volatile bool again = true;

	while (again)
	{
		PG_TRY();
		{
			StartTransactionCommand();
			PushActiveSnapshot(GetTransactionSnapshot());
			again = drop_one(set, &pass);
			PopActiveSnapshot();
			CommitTransactionCommand();
		}
		PG_CATCH();
		{
			ErrorData  *error;

			MemoryContextSwitchTo(context);
			error = CopyErrorData();
			FlushErrorState();
			AbortCurrentTransaction();
			again = false;
			if (error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
				ereport(LOG,
						(errmsg("coord: could not drop an expired partition: %s",
								error->message)));
			FreeErrorData(error);
		}
		PG_END_TRY();
	}
	MemoryContextSwitchTo(context);
}
