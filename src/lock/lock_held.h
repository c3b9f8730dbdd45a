/*-------------------------------------------------------------------------
 *
 * lock_held.h
 *	  What this session holds; private to src/lock.
 *
 * See lock_held.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_LOCK_HELD_H
#define COORD_LOCK_HELD_H

#include "postgres.h"

#include "lock/lock_key.h"

typedef struct HeldKey
{
	uint64		hash;
	uint8		more;
	uint8		kind;
	uint8		unused[6];
} HeldKey;

/* One name in one mode. */
typedef struct Held
{
	HeldKey		key;
	int			session;		/* how often, by the session */
	bool		transaction;	/* also by the transaction, */
	SubTransactionId subid;		/* the outermost that holds it */
	int64		token;
	int			index;			/* in shared memory; -1: not there */
} Held;

extern void held_mark_session(void);
extern void held_count_one(const char *name, bool to_the_end);
extern void held_count_one_less(bool to_the_end);
extern Held *held_find(const LockKey *key, LockKind kind);
extern Held *held_reserve(const char *name, const LockKey *key, LockKind kind);
extern void held_granted(Held *held, const char *name, const LockKey *key, bool session, int64 token);
extern void held_waits(const char *name, const LockKey *key, LockKind kind);
extern void held_waits_no_more(void);
extern void held_forget(Held *held);
extern bool held_by_me(const LOCKTAG *tag, LOCKMODE mode);
extern void held_to_the_end(Held *held);
extern void held_released(Held *held);
extern void held_check_session(void);

#endif							/* COORD_LOCK_HELD_H */
