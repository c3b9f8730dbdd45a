/*-------------------------------------------------------------------------
 *
 * errors.h
 *	  SQLSTATEs of coord's own, for what no standard code says.
 *
 * doc/errors.md lists them for users.  Class ZC is in the range that the SQL
 * standard leaves to implementations.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_ERRORS_H
#define COORD_ERRORS_H

#define ERRCODE_COORD_LEASE_LOST			MAKE_SQLSTATE('Z','C','0','0','1')
#define ERRCODE_COORD_FENCE_STALE			MAKE_SQLSTATE('Z','C','0','0','2')
#define ERRCODE_COORD_WRONG_VERSION			MAKE_SQLSTATE('Z','C','0','0','3')
#define ERRCODE_COORD_TOMBSTONED			MAKE_SQLSTATE('Z','C','0','0','4')
#define ERRCODE_COORD_KEY_REUSED			MAKE_SQLSTATE('Z','C','0','0','5')
#define ERRCODE_COORD_ILLEGAL_TRANSITION	MAKE_SQLSTATE('Z','C','0','0','6')
#define ERRCODE_COORD_VERSION_MISMATCH		MAKE_SQLSTATE('Z','C','0','0','7')
#define ERRCODE_COORD_IN_DOUBT				MAKE_SQLSTATE('Z','C','0','0','9')
#define ERRCODE_COORD_PARTICIPANT_FAILED	MAKE_SQLSTATE('Z','C','0','1','0')
#define ERRCODE_COORD_CANCELLED				MAKE_SQLSTATE('Z','C','0','1','1')

#endif							/* COORD_ERRORS_H */
