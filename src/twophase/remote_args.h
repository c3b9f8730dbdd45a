/*-------------------------------------------------------------------------
 *
 * remote_args.h
 *	  Arguments of statements at participants.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_REMOTE_ARGS_H
#define COORD_REMOTE_ARGS_H

#include "postgres.h"

#include "utils/jsonb.h"

extern const char **remote_args(Jsonb *args, int *count);

#endif							/* COORD_REMOTE_ARGS_H */
