/*-------------------------------------------------------------------------
 *
 * saga_crash.c
 *	  What a worker has in hand: for crashes, operators and coord.workers.
 *
 * Before user code runs, the worker writes the saga's id into its place in a
 * small file that is mapped into memory.  No WAL, no fsync, one store; the page
 * cache keeps it through kill -9 of every process.  A worker that ends in any
 * orderly way clears its place.  So what is found in the place of a worker that
 * does not live was in hand at a crash: such a saga is a suspect, whose steps
 * run alone and with the attempt committed beforehand until it is finished.
 *
 * Losing the file loses caution, never work.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/timestamp.h"

#include "base/doorbell.h"
#include "saga/saga_instance.h"

#define CRASH_FILE "coord.inhand"
#define MAX_SUSPECTS 16

typedef struct CrashPlace
{
	Oid			database;
	volatile int64 current;
	int64		suspects[MAX_SUSPECTS];
} CrashPlace;

/* A suspect of this worker; "charged" says for which call, -1: none. */
typedef struct Suspect
{
	int64		saga;
	int			ordinal;
	Phase		phase;
} Suspect;

/* The mapped file, one place per worker slot; NULL outside workers. */
static CrashPlace *places = NULL;
static CrashPlace *my_place = NULL;
static WorkerSlot *my_slot = NULL;

static Suspect suspects[MAX_SUSPECTS];
static int	nsuspects = 0;

static void
add_suspect(int64 saga)
{
	if (saga == 0 || nsuspects == MAX_SUSPECTS || saga_is_suspect(saga))
		return;
	my_place->suspects[nsuspects] = saga;
	suspects[nsuspects].saga = saga;
	suspects[nsuspects].ordinal = -1;
	nsuspects++;
}

/*
 * Map the file and take over what dead workers of this database had in hand.
 * Called once by a worker that has the slot.  Failure to map is a LOG message:
 * the worker then works without caution.
 */
void
saga_crash_attach(int worker_slot)
{
	Size		size = sizeof(CrashPlace) * COORD_MAX_WORKERS;
	int			fd;
	void	   *map;

	my_slot = &coord_shared->workers[worker_slot];

	fd = BasicOpenFile(CRASH_FILE, O_RDWR | O_CREAT | PG_BINARY);
	if (fd < 0 || ftruncate(fd, size) != 0)
		map = MAP_FAILED;
	else
		map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not map file \"%s\": %m", CRASH_FILE),
				 errdetail("Steps that crash the server will not be recognized.")));
	if (fd >= 0)
		close(fd);
	if (map == MAP_FAILED)
		return;

	places = map;
	my_place = &places[worker_slot];
	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < COORD_MAX_WORKERS; i++)
	{
		CrashPlace	old = places[i];

		if (old.database != MyDatabaseId ||
			(i != worker_slot && coord_shared->workers[i].state != WORKER_FREE))
			continue;
		memset(&places[i], 0, sizeof(CrashPlace));
		my_place->database = MyDatabaseId;
		add_suspect(old.current);
		for (int j = 0; j < MAX_SUSPECTS; j++)
			add_suspect(old.suspects[j]);
	}
	memset(my_place, 0, sizeof(CrashPlace));
	for (int i = 0; i < nsuspects; i++)
		my_place->suspects[i] = suspects[i].saga;
	my_place->database = MyDatabaseId;
	LWLockRelease(&coord_shared->lock);
}

/* An orderly end: nothing is in hand. */
void
saga_crash_detach(void)
{
	if (my_place != NULL)
	{
		my_place->current = 0;

		/* Suspects not finished stay for the next worker. */
		if (nsuspects == 0)
			memset(my_place, 0, sizeof(CrashPlace));
	}
}

/* User code of a saga is about to run. */
void
saga_crash_enter(int64 saga, int64 definition, int ordinal, Phase phase, Oid owner)
{
	if (my_place != NULL)
		my_place->current = saga;
	if (my_slot != NULL)
	{
		my_slot->definition = definition;
		my_slot->ordinal = ordinal;
		my_slot->phase = phase;
		my_slot->owner = owner;
		my_slot->since = GetCurrentTimestamp();
		my_slot->current = saga;
	}
}

/* User code has returned, or its transaction has been aborted. */
void
saga_crash_leave(void)
{
	if (my_place != NULL)
		my_place->current = 0;
	if (my_slot != NULL)
		my_slot->current = 0;
}

/*
 * Was a cancel sent for the sake of an operator's request?  Says so once.
 */
bool
saga_crash_interrupted(void)
{
	if (my_slot == NULL || my_slot->interrupt == 0)
		return false;
	my_slot->interrupt = 0;
	return true;
}

static Suspect *
find_suspect(int64 saga)
{
	for (int i = 0; i < nsuspects; i++)
	{
		if (suspects[i].saga == saga)
			return &suspects[i];
	}
	return NULL;
}

bool
saga_is_suspect(int64 saga)
{
	return nsuspects > 0 && find_suspect(saga) != NULL;
}

/* Has the attempt at this call of a suspect been committed? */
bool
saga_suspect_charged(int64 saga, int ordinal, Phase phase)
{
	Suspect    *suspect = find_suspect(saga);

	return suspect != NULL && suspect->ordinal == ordinal && suspect->phase == phase;
}

void
saga_suspect_charge(int64 saga, int ordinal, Phase phase)
{
	Suspect    *suspect = find_suspect(saga);

	suspect->ordinal = ordinal;
	suspect->phase = phase;
}

/* The call was made; the next one is charged anew. */
void
saga_suspect_uncharge(int64 saga)
{
	Suspect    *suspect = find_suspect(saga);

	if (suspect != NULL)
		suspect->ordinal = -1;
}

/* It is finished: nothing to suspect any more. */
void
saga_suspect_clear(int64 saga)
{
	Suspect    *suspect = find_suspect(saga);

	if (suspect == NULL)
		return;
	*suspect = suspects[--nsuspects];
	memset(my_place->suspects, 0, sizeof(my_place->suspects));
	for (int i = 0; i < nsuspects; i++)
		my_place->suspects[i] = suspects[i].saga;
}
