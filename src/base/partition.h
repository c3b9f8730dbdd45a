/*-------------------------------------------------------------------------
 *
 * partition.h
 *	  Partitions by time: made ahead, dropped whole.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_PARTITION_H
#define COORD_PARTITION_H

#include "postgres.h"

#include "datatype/timestamp.h"

/* A table of coord_internal that is PARTITION BY RANGE of one time. */
typedef struct PartitionParent
{
	const char *name;
	const char *index;			/* what is to be indexed in each partition */

	/*
	 * Called before a partition is dropped, in the same transaction, between
	 * query_begin() and query_end(), with the parent and the partition locked
	 * against everybody.  The name is qualified and quoted.  False: keep it for
	 * now, and what the callback wrote; those after it are tried all the same.
	 * NULL: nothing to do.
	 */
	bool		(*before_drop) (const char *partition);
} PartitionParent;

/*
 * Tables that share a retention.  Declare it static, with the first three
 * members; the rest is what this process knows.
 */
typedef struct PartitionSet
{
	const PartitionParent *parents;
	int			nparents;
	const int  *retention;		/* the setting, in minutes */

	/* From when until when there are partitions. */
	TimestampTz covered_from;
	TimestampTz covered_until;
	int			covered_retention;	/* the setting then */
	Oid			covered_namespace;	/* another after CREATE EXTENSION */
	bool		callbacks_registered;
} PartitionSet;

extern int	partition_neutral_settings(void);
extern bool partition_is_ready(const PartitionSet *set);
extern void partition_ensure(PartitionSet *set, bool ahead_too);
extern void partition_drop_expired(const PartitionSet *set);

#endif							/* COORD_PARTITION_H */
