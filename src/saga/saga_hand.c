/*-------------------------------------------------------------------------
 *
 * saga_hand.c
 *	  The turn in progress in this process, and what it has in hand.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "saga/saga_instance.h"

/*
 * The sagas of the turn in progress, which its own steps may not touch: a verb
 * called from a step becomes a request.  Owned by saga_take_in_hand(); valid
 * while "hand_transaction" is the running transaction.
 */
static Turn *hand_turn = NULL;
static int64 hand_ids[SAGA_MAX_BATCH];
static int	hand_count = 0;
static LocalTransactionId hand_transaction = InvalidLocalTransactionId;

/* These sagas are about to be advanced in this transaction. */
void
saga_take_in_hand(Turn *turn, const int64 *ids, int count)
{
	Assert(count <= SAGA_MAX_BATCH);
	hand_turn = turn;
	memcpy(hand_ids, ids, sizeof(int64) * count);
	hand_count = count;
	hand_transaction = coord_local_transaction();
}

/* Is a turn in progress in this very transaction, of which this is a step? */
bool
saga_has_in_hand(void)
{
	return hand_count > 0 && hand_transaction == coord_local_transaction();
}

/*
 * Is this saga being advanced by the very transaction that asks?  Then the turn
 * ends after the call in progress, so that what was asked for is done.
 */
bool
saga_is_in_hand(int64 id)
{
	if (!saga_has_in_hand())
		return false;
	for (int i = 0; i < hand_count; i++)
	{
		if (hand_ids[i] == id)
		{
			hand_turn->end = true;
			return true;
		}
	}
	return false;
}

/*
 * Start a turn's bookkeeping in the current transaction; its memory goes with
 * the transaction.
 */
void
saga_turn_begin(Turn *turn, bool worker)
{
	memset(turn, 0, sizeof(Turn));
	turn->context = AllocSetContextCreate(TopTransactionContext, "coord turn",
										  ALLOCSET_DEFAULT_SIZES);
	turn->call_context = AllocSetContextCreate(turn->context, "coord call",
											   ALLOCSET_DEFAULT_SIZES);
	turn->worker = worker;
	turn->guard_all = !worker;
	turn->started = turn->loaded = GetCurrentTimestamp();
	turn->slot = doorbell_database(MyDatabaseId, true);
	if (turn->slot != NULL)
		turn->request_serial = turn->slot->request_serial;
}

/*
 * The turn's transaction is over.  A request that came meanwhile may have been
 * looked at while its saga was still locked here, and passed over.
 */
void
saga_turn_end(const Turn *turn)
{
	DatabaseSlot *slot = turn->slot;
	bool		missed = false;

	if (slot == NULL || slot->request_serial == turn->request_serial)
		return;
	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	if (slot->database == MyDatabaseId && slot->requests_left && !slot->requests)
		missed = slot->requests = true;
	LWLockRelease(&coord_shared->lock);
	if (missed)
		doorbell_wake_workers(MyDatabaseId, 1);
}
