/*-------------------------------------------------------------------------
 *
 * saga_archive.c
 *	  Partitions of the archive and of the log: made ahead, dropped whole.
 *
 * A partition whose end is older than coord.saga_retention is dropped, with the
 * keys of the sagas in it; see base/partition.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/snapmgr.h"

#include "base/guc.h"
#include "base/installation.h"
#include "base/partition.h"
#include "base/query.h"
#include "saga/saga_task.h"

/* The keys of the sagas in a partition of the archive go with it. */
static bool
delete_keys(const char *partition)
{
	query_utility(psprintf("DELETE FROM coord_internal.saga_key k USING %s a"
						   " WHERE a.key IS NOT NULL AND k.saga_id = a.id",
						   partition));
	return true;
}

static const PartitionParent parents[] =
{
	{"saga_archive", "ADD PRIMARY KEY (id)", delete_keys},
	{"saga_log", "ADD PRIMARY KEY (saga_id, at, id)"},
};

static PartitionSet partitions = {parents, lengthof(parents), &guc_saga_retention};

/* Make sure that what finishes has a partition to go to; see partition_ensure(). */
void
saga_ensure_partitions(bool ahead_too)
{
	partition_ensure(&partitions, ahead_too);
}

/*
 * Is anything defined?  Before that nothing can finish, and a restore that has
 * just created the extension is about to create the dump's partitions.
 */
static bool
any_definition(void)
{
	static Statement read = {
		"SELECT FROM coord_internal.saga_version LIMIT 1", 0, {0}
	};
	QueryScope	scope;
	bool		result;

	query_begin(&scope);
	result = query_run(&read, NULL, NULL, 1) > 0;
	query_end(&scope);
	return result;
}

/*
 * Make partitions ahead and drop expired ones.  Runs its own transactions; a
 * partition that is in use is left for the next time.
 */
void
saga_housekeeping(void)
{
	MemoryContext context = CurrentMemoryContext;
	bool		running = false;

	StartTransactionCommand();
	if (installation_lock(AccessShareLock))
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		running = installation_state() == ENGINE_RUNNING && any_definition();
		if (running)
		{
			saga_ensure_partitions(true);
			saga_forget_gone_tasks();
		}
		PopActiveSnapshot();
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);

	if (running)
		partition_drop_expired(&partitions);
}
