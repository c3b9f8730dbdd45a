/*-------------------------------------------------------------------------
 *
 * guc.h
 *	  coord's settings.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_GUC_H
#define COORD_GUC_H

#include "datatype/timestamp.h"

/* Owned by guc.c, written by the GUC machinery only. */
extern char *guc_correlation_id;
extern bool guc_enabled;
extern int	guc_event_retention;
extern int	guc_fence_steal_timeout;
extern int	guc_handler_timeout;	/* ms, 0: never */
extern int	guc_max_function_wait;	/* ms */
extern int	guc_max_lease;			/* ms */
extern int	guc_max_locks;			/* -1: half of the lock table */
extern int	guc_max_workers;
extern int	guc_saga_retention;		/* minutes */
extern int	guc_twophase_lock_timeout;	/* ms */
extern int	guc_twophase_phase2_timeout;	/* ms */
extern int	guc_twophase_prepare_timeout;	/* ms */
extern int	guc_twophase_retention; /* minutes */
extern int	guc_worker_idle_timeout;	/* ms */
extern TimestampTz guc_test_now_value;	/* 0: not set */
#ifdef COORD_DEBUG_POINTS
extern int	guc_debug_hash_bits;
extern char *guc_debug_point;
#endif

extern void guc_define(void);

#endif							/* COORD_GUC_H */
