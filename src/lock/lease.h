/*-------------------------------------------------------------------------
 *
 * lease.h
 *	  Leases as this process sees them; private to src/lock.
 *
 * See lease_store.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_LEASE_H
#define COORD_LEASE_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "fmgr.h"

#include "base/check.h"
#include "lock/lock_key.h"

/* Who has a lease, or permits of a semaphore. */
typedef struct LeaseHolder
{
	int64		token;
	int64		deadline;		/* of the steady clock */
	int64		ttl_us;			/* as it is stored */
	TimestampTz granted_at;
	int			permits;
	Oid			role;
	bool		leader;
	char		owner[CHECK_NAME_MAX + 1];
} LeaseHolder;

/* A name as the open transaction sees it, with what it has done itself. */
typedef struct LeaseState
{
	int			capacity;		/* 0: not a semaphore */
	int			nholders;		/* also those that have run out */
	LeaseHolder *holders;
} LeaseState;

typedef enum LeaseExtension
{
	LEASE_EXTENDED,
	LEASE_LONGER,				/* than what is stored: that comes first */
	LEASE_NOT_HELD
} LeaseExtension;

/* lease_store.c */
extern void lease_open(void);
extern void lease_get(const char *name, LeaseState *state);
extern LeaseHolder *lease_find(LeaseState *state, int64 token);
extern bool lease_is_live(const LeaseHolder *holder);
extern LeaseExtension lease_extend(const char *name, int64 token, int64 ttl_us, LeaseHolder *holder);
extern void lease_note_grant(const char *name, const LeaseHolder *holder, bool semaphore);
extern void lease_note_release(const char *name, int64 token);
extern void lease_note_ttl(const char *name, const LeaseHolder *holder);
extern void lease_sweep_later(TimestampTz deadline);
extern void lease_note_capacity(const char *name, int capacity);
extern bool lease_granted_here(void);

extern Oid	lease_relation(void);

/* lease_row.c */
extern void lease_row_insert(Oid relid, const char *name, bool semaphore, const LeaseHolder *holder);
extern bool lease_row_delete(Oid relid, const char *name, int64 token);

/* lease_wait.c */
extern int64 lease_wait_end(int64 timeout_us);
extern bool lease_enter_gate(const char *name, int64 until);
extern void lease_leave_gate(const char *name);
extern void lease_wait_begin(const char *name);
extern void lease_wait_prepare(const char *name);
extern bool lease_wait(const LeaseState *state, int64 until, int64 most_us);
extern void lease_wait_done(void);
extern bool lease_fence_off(const char *name, int64 until);
extern void lease_open_fence(const char *name);

/* lease.c */
typedef struct LeaseRequest
{
	char	   *name;
	char	   *owner;
	int64		ttl_us;
	int64		timeout_us;
	int			permits;
	bool		leader;
} LeaseRequest;

extern void lease_check_callable(const char *function);
extern int64 lease_ttl(FunctionCallInfo fcinfo, int argument, int64 default_us);
extern char *lease_owner(FunctionCallInfo fcinfo, int argument);
extern bool lease_acquire(const LeaseRequest *request, LeaseHolder *granted);
extern void lease_check_ours(const char *name, const LeaseHolder *holder);
extern bool lease_may_see(const LeaseHolder *holder);
extern bool lease_end(const char *name, const LeaseHolder *holder);
extern void lease_log(const char *name, const LeaseHolder *holder, const char *event, const char *reason);
extern int64 lease_remaining_ms(const LeaseHolder *holder);
extern TimestampTz lease_expires_at(const LeaseHolder *holder);

/* fence.c */
extern void fence_tag(LOCKTAG *tag, const char *name);
extern void fence_forget(int64 token);

#endif							/* COORD_LEASE_H */
