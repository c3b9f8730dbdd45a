/*-------------------------------------------------------------------------
 *
 * debug_point.h
 *	  Places where tests stop, fail or kill a process.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_DEBUG_POINT_H
#define COORD_DEBUG_POINT_H

#ifdef COORD_DEBUG_POINTS
extern void debug_point(const char *name);
#define DEBUG_POINT(name) debug_point(name)
#else
#define DEBUG_POINT(name) ((void) 0)
#endif

#endif							/* COORD_DEBUG_POINT_H */
