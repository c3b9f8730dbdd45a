/*-------------------------------------------------------------------------
 *
 * coord.c
 *	  Where the server meets coord: _PG_init and nothing else.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"

#include "base/doorbell.h"
#include "base/guc.h"
#include "event/event.h"
#include "lock/lock.h"
#include "runtime/runtime.h"
#include "saga/saga.h"
#include "twophase/foreign_write.h"
#include "twophase/twophase.h"

PG_MODULE_MAGIC;

void		_PG_init(void);

static shmem_request_hook_type next_shmem_request_hook = NULL;

static void
shmem_request(void)
{
	if (next_shmem_request_hook)
		next_shmem_request_hook();
	RequestAddinShmemSpace(doorbell_shmem_size());
	RequestAddinShmemSpace(queue_shmem_size());
	RequestAddinShmemSpace(lock_shmem_size());
	RequestAddinShmemSpace(twophase_shmem_size());
	RequestAddinShmemSpace(event_shmem_size());
}

/*
 * With preload everything; without, what a session can do for itself.  During
 * pg_upgrade nothing: its servers must see no worker and no hook.
 */
void
_PG_init(void)
{
	if (IsBinaryUpgrade)
		return;

	guc_define();
	saga_register();
	twophase_register_machine();
	foreign_write_install();

	if (!process_shared_preload_libraries_in_progress)
		return;
	next_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = shmem_request;
	launcher_register();
	databases_install_hook();
	twophase_drop_install();
}
