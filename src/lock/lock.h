/*-------------------------------------------------------------------------
 *
 * lock.h
 *	  What the rest of coord may know of locks and leases.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_LOCK_H
#define COORD_LOCK_H

#include "postgres.h"

extern Size lock_shmem_size(void);
extern int64 lock_token_next(void);
extern int64 lock_token_current(void);
extern void lock_prefixes_changed(void);
extern void lease_forget_all(void);
extern void lease_housekeeping(void);

#endif							/* COORD_LOCK_H */
