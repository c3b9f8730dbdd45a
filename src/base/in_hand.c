/*-------------------------------------------------------------------------
 *
 * in_hand.c
 *	  What a worker has in hand: for crashes, operators and coord.workers.
 *
 * Before user code runs, the worker writes the saga's id into its place in a
 * small file that is mapped into memory.  No WAL, no fsync, one store; the page
 * cache keeps it through kill -9 of every process.  A worker that ends in any
 * orderly way clears its place.  So what the file has when shared memory is new
 * was in hand at a crash, or was a suspect then: such a saga is a suspect until
 * it is finished.
 *
 * A suspect's steps run alone, with the attempt committed beforehand, and never
 * two suspects at a time in the cluster: of several that were in hand only one
 * can be the culprit, and the others come through when it does not run.
 *
 * What handles events is in hand by its subscription, whose name here is the
 * subscription's id with a minus.
 *
 * The list is in shared memory, and written through to the file, so that it
 * does not matter which process meets a suspect.  Losing the file loses caution,
 * never work.
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
#include "storage/procarray.h"
#include "utils/timestamp.h"

#include "base/doorbell.h"
#include "base/in_hand.h"

#define CRASH_FILE "coord.inhand"

typedef struct SagaName
{
	Oid			database;
	int64		saga;			/* 0: none */
} SagaName;

typedef struct CrashFile
{
	volatile SagaName in_hand[COORD_MAX_WORKERS];
	SagaName	suspects[COORD_MAX_SUSPECTS];
} CrashFile;

/* The mapped file; NULL until map_file(), and where it cannot be mapped. */
static CrashFile *file = NULL;

/* This worker's place; -1 in other processes. */
static int	my_place = -1;
static WorkerSlot *my_slot = NULL;

/* Map the file, making it when there is none.  Failure is a LOG message. */
static void
map_file(void)
{
	static bool tried = false;
	int			fd;
	void	   *map = MAP_FAILED;

	if (tried)
		return;
	tried = true;
	fd = BasicOpenFile(CRASH_FILE, O_RDWR | O_CREAT | PG_BINARY);
	if (fd >= 0 && ftruncate(fd, sizeof(CrashFile)) == 0)
		map = mmap(NULL, sizeof(CrashFile), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not map file \"%s\": %m", CRASH_FILE),
				 errdetail("Steps that crash the server will not be recognized.")));
	else
		file = map;
	if (fd >= 0)
		close(fd);
}

/* Write the list through; the lock is held. */
static void
write_suspects(void)
{
	if (file == NULL)
		return;
	for (int i = 0; i < COORD_MAX_SUSPECTS; i++)
	{
		bool		used = i < coord_shared->nsuspects;

		file->suspects[i].database = used ? coord_shared->suspects[i].database : InvalidOid;
		file->suspects[i].saga = used ? coord_shared->suspects[i].saga : 0;
	}
}

/* The lock is held. */
static Suspect *
find_suspect(Oid database, int64 saga)
{
	for (int i = 0; i < coord_shared->nsuspects; i++)
	{
		Suspect    *suspect = &coord_shared->suspects[i];

		if (suspect->saga == saga && suspect->database == database)
			return suspect;
	}
	return NULL;
}

static void
add_suspect(SagaName name)
{
	Suspect    *suspect;

	if (name.saga == 0 || coord_shared->nsuspects == COORD_MAX_SUSPECTS ||
		find_suspect(name.database, name.saga) != NULL)
		return;
	suspect = &coord_shared->suspects[coord_shared->nsuspects++];
	suspect->database = name.database;
	suspect->saga = name.saga;
	suspect->charged_ordinal = -1;
	suspect->runner = 0;
}

/*
 * A worker takes its place.  The first one after shared memory was made reads
 * what a crash left in the file.
 */
void
in_hand_attach(int worker_slot)
{
	my_slot = &coord_shared->workers[worker_slot];
	my_place = worker_slot;
	map_file();

	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	if (!coord_shared->suspects_loaded)
	{
		coord_shared->suspects_loaded = true;
		for (int i = 0; file != NULL && i < COORD_MAX_WORKERS; i++)
		{
			SagaName	name = {file->in_hand[i].database, file->in_hand[i].saga};

			add_suspect(name);
			file->in_hand[i].saga = 0;
		}
		for (int i = 0; file != NULL && i < COORD_MAX_SUSPECTS; i++)
			add_suspect(file->suspects[i]);
		write_suspects();
	}
	LWLockRelease(&coord_shared->lock);
	in_hand_leave();
}

/* An orderly end: nothing is in hand. */
void
in_hand_detach(void)
{
	in_hand_leave();
	suspect_release(true);
}

/* User code of a saga is about to run. */
void
in_hand_enter(int64 saga, int64 definition, int ordinal, int phase, Oid owner)
{
	if (my_slot == NULL)
		return;
	if (file != NULL)
	{
		file->in_hand[my_place].database = MyDatabaseId;
		file->in_hand[my_place].saga = saga;
	}
	my_slot->definition = definition;
	my_slot->ordinal = ordinal;
	my_slot->phase = phase;
	my_slot->owner = owner;
	my_slot->since = GetCurrentTimestamp();
	my_slot->current = saga;
}

/* User code has returned, or its transaction has been aborted. */
void
in_hand_leave(void)
{
	if (my_slot == NULL)
		return;
	if (file != NULL)
		file->in_hand[my_place].saga = 0;
	my_slot->current = 0;
}

/*
 * Was a cancel sent for the sake of an operator's request?  Says so once.
 */
bool
in_hand_interrupted(void)
{
	if (my_slot == NULL || my_slot->interrupt == 0)
		return false;
	my_slot->interrupt = 0;
	return true;
}

bool
in_hand_is_suspect(int64 saga)
{
	bool		result;

	if (coord_shared->nsuspects == 0)
		return false;
	LWLockAcquire(&coord_shared->lock, LW_SHARED);
	result = find_suspect(MyDatabaseId, saga) != NULL;
	LWLockRelease(&coord_shared->lock);
	return result;
}

/*
 * May this process advance the suspect now?  Not while another process has one;
 * until suspect_release() it has this one.
 */
bool
suspect_acquire(int64 saga)
{
	Suspect    *mine;
	bool		free = true;

	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	mine = find_suspect(MyDatabaseId, saga);
	for (int i = 0; i < coord_shared->nsuspects && mine != NULL; i++)
	{
		int			runner = coord_shared->suspects[i].runner;

		if (runner != 0 && runner != MyProcPid && BackendPidGetProc(runner) != NULL)
			free = false;
	}
	if (mine != NULL && free)
		mine->runner = MyProcPid;
	LWLockRelease(&coord_shared->lock);
	return free;
}

/*
 * The transaction in which a suspect was advanced is over.  One whose attempt is
 * charged and not yet made is kept, unless "all": were another one run in
 * between and crashed the server, the charge would have been for nothing.
 */
void
suspect_release(bool all)
{
	if (coord_shared == NULL || coord_shared->nsuspects == 0)
		return;
	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < coord_shared->nsuspects; i++)
	{
		Suspect    *suspect = &coord_shared->suspects[i];

		if (suspect->runner == MyProcPid && (all || suspect->charged_ordinal < 0))
			suspect->runner = 0;
	}
	LWLockRelease(&coord_shared->lock);
}

/* Has the attempt at this call of a suspect been committed? */
bool
suspect_charged(int64 saga, int ordinal, int phase, int item)
{
	Suspect    *suspect;
	bool		result;

	LWLockAcquire(&coord_shared->lock, LW_SHARED);
	suspect = find_suspect(MyDatabaseId, saga);
	result = suspect == NULL ||
		(suspect->charged_ordinal == ordinal && suspect->charged_phase == phase &&
		 suspect->charged_item == item);
	LWLockRelease(&coord_shared->lock);
	return result;
}

/* It will have been, when this transaction commits; -1: the call was made. */
void
suspect_charge(int64 saga, int ordinal, int phase, int item)
{
	Suspect    *suspect;

	if (coord_shared->nsuspects == 0)
		return;
	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	suspect = find_suspect(MyDatabaseId, saga);
	if (suspect != NULL)
	{
		suspect->charged_ordinal = ordinal;
		suspect->charged_phase = phase;
		suspect->charged_item = item;
	}
	LWLockRelease(&coord_shared->lock);
}

/* It is finished: nothing to suspect any more. */
void
suspect_clear(int64 saga)
{
	Suspect    *suspect;

	if (coord_shared == NULL || coord_shared->nsuspects == 0)
		return;
	map_file();
	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	suspect = find_suspect(MyDatabaseId, saga);
	if (suspect != NULL)
	{
		*suspect = coord_shared->suspects[--coord_shared->nsuspects];
		write_suspects();
	}
	LWLockRelease(&coord_shared->lock);
}
