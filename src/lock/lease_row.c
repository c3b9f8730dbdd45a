/*-------------------------------------------------------------------------
 *
 * lease_row.c
 *	  The rows of leases, written without the executor.
 *
 * A grant inserts one row and a release deletes one, by the primary key, in a
 * table that has no triggers and no other index.  Through SPI the two cost more
 * than everything else that an uncontended pair does besides its commits, most
 * of it to start and end the executor (bench/lock, row "leaselate": 0.78 times its
 * floor, and 1.00 without).
 *
 * A row that is there already is an error (23505): of a name of which nobody has
 * a lease there is none, and who inserts has the name's gate.  It would be one
 * that somebody has written by hand; the next start of the server loads it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "lock/lease.h"

/* In the order of sql/lock.sql. */
enum
{
	COLUMN_NAME = 1, COLUMN_HOLDER, COLUMN_KIND, COLUMN_OWNER, COLUMN_ROLE, COLUMN_TOKEN,
	COLUMN_PERMITS, COLUMN_TTL, COLUMN_GRANTED_AT
};

static Oid
primary_key(Relation relation)
{
	(void) RelationGetIndexList(relation);
	return relation->rd_pkindex;
}

/* The row of a grant, where there is none; of a semaphore each owner has one. */
void
lease_row_insert(Oid relid, const char *name, bool semaphore, const LeaseHolder *holder)
{
	Relation	relation = table_open(relid, RowExclusiveLock);
	Relation	index = index_open(primary_key(relation), RowExclusiveLock);
	TupleTableSlot *slot = table_slot_create(relation, NULL);
	Datum	   *values = slot->tts_values;

	ExecClearTuple(slot);
	memset(slot->tts_isnull, 0, sizeof(bool) * RelationGetDescr(relation)->natts);
	values[COLUMN_NAME - 1] = CStringGetTextDatum(name);
	values[COLUMN_HOLDER - 1] = CStringGetTextDatum(semaphore ? holder->owner : "");
	values[COLUMN_KIND - 1] = CStringGetTextDatum(semaphore ? "semaphore" : holder->leader ? "leader" : "lease");
	values[COLUMN_OWNER - 1] = CStringGetTextDatum(holder->owner);
	values[COLUMN_ROLE - 1] = ObjectIdGetDatum(holder->role);
	values[COLUMN_TOKEN - 1] = Int64GetDatum(holder->token);
	values[COLUMN_PERMITS - 1] = Int32GetDatum(holder->permits);
	values[COLUMN_TTL - 1] = Int64GetDatum(holder->ttl_us);
	values[COLUMN_GRANTED_AT - 1] = TimestampTzGetDatum(holder->granted_at);
	ExecStoreVirtualTuple(slot);
	table_tuple_insert(relation, slot, GetCurrentCommandId(true), 0, NULL);
	(void) index_insert(index, values, slot->tts_isnull, &slot->tts_tid, relation,
						UNIQUE_CHECK_YES, false, NULL);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, NoLock);
	table_close(relation, NoLock);
	CommandCounterIncrement();
}

/* Remove the row of a grant; false: somebody else has. */
bool
lease_row_delete(Oid relid, const char *name, int64 token)
{
	Relation	relation = table_open(relid, RowExclusiveLock);
	Oid			index = primary_key(relation);
	bool		found = false;
	bool		again;

	do
	{
		Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
		SysScanDesc scan;
		ScanKeyData key;
		HeapTuple	tuple;

		again = false;
		ScanKeyEntryInitialize(&key, 0, COLUMN_NAME, BTEqualStrategyNumber, InvalidOid,
							   TupleDescAttr(RelationGetDescr(relation), 0)->attcollation,
							   F_TEXTEQ, CStringGetTextDatum(name));
		scan = systable_beginscan(relation, index, true, snapshot, 1, &key);
		while ((tuple = systable_getnext(scan)) != NULL)
		{
			bool		isnull;
			TM_FailureData failure;
			TM_Result	result;

			if (DatumGetInt64(heap_getattr(tuple, COLUMN_TOKEN, RelationGetDescr(relation), &isnull)) != token)
				continue;
			result = coord_tuple_delete(relation, &tuple->t_self, GetCurrentCommandId(true),
										snapshot, &failure);
			found = result == TM_Ok;
			again = result == TM_Updated;
			break;
		}
		systable_endscan(scan);
		UnregisterSnapshot(snapshot);
	} while (again);
	table_close(relation, NoLock);
	if (found)
		CommandCounterIncrement();
	return found;
}
