/*-------------------------------------------------------------------------
 *
 * foreign_write.c
 *	  Writes to foreign tables in a transaction that has participants.
 *
 * postgres_fdw commits its own connections one after the other, whatever becomes of
 * the rest: a transaction that also has participants would not be atomic.  So the
 * executor hook notes a statement that writes a foreign table, the utility hook a COPY
 * or TRUNCATE.  Whichever comes second, such a statement or a participant, is refused
 * at once: at COMMIT it would be too late, since postgres_fdw's callback may come before
 * ours.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "executor/executor.h"
#include "nodes/parsenodes.h"
#include "storage/lmgr.h"
#include "utils/lsyscache.h"

#include "base/compat.h"
#include "twophase/branch.h"
#include "twophase/foreign_write.h"

static ExecutorStart_hook_type next_hook = NULL;

/* The transaction that wrote a foreign table, and which one. */
static LocalTransactionId written_in = InvalidLocalTransactionId;
static char written[NAMEDATALEN];

static void
refuse(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("a transaction with participants cannot write foreign tables"),
			 errdetail("Foreign table \"%s\" would be committed by its own connection, whatever becomes of the rest.",
					   written),
			 errhint("Write it with coord.remote_exec(), or in a transaction of its own.")));
}

static void
note(Oid relation)
{
	char	   *name = get_rel_name(relation);

	strlcpy(written, name ? name : "", NAMEDATALEN);
	if (nbranches > 0)
		refuse();
	written_in = coord_local_transaction();
}

/*
 * Note the relation if it is a foreign table, or one of its partitions is.  0A000 in a
 * transaction with participants.
 */
void
foreign_write_note(Oid relation)
{
	char		kind = get_rel_relkind(relation);

	if (kind == RELKIND_FOREIGN_TABLE)
		note(relation);
	else if (kind == RELKIND_PARTITIONED_TABLE)
	{
		List	   *all = find_all_inheritors(relation, NoLock, NULL);
		ListCell   *cell;

		foreach(cell, all)
		{
			if (get_rel_relkind(lfirst_oid(cell)) == RELKIND_FOREIGN_TABLE)
				note(lfirst_oid(cell));
		}
		list_free(all);
	}
}

static void
executor_start(QueryDesc *query, int flags)
{
	if (!(flags & EXEC_FLAG_EXPLAIN_ONLY))
	{
		ListCell   *cell;

		foreach(cell, coord_written_relations(query->plannedstmt))
			foreign_write_note(lfirst_oid(cell));
	}
	if (next_hook)
		next_hook(query, flags);
	else
		standard_ExecutorStart(query, flags);
}

/* Called from _PG_init. */
void
foreign_write_install(void)
{
	next_hook = ExecutorStart_hook;
	ExecutorStart_hook = executor_start;
}

/* Before the open transaction gets a participant: 0A000 if it wrote a foreign table. */
void
foreign_write_check(void)
{
	if (written_in == coord_local_transaction())
		refuse();
}
