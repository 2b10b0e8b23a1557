/**
 * Locks on open files (flock(2)): the kernel drops one when the last descriptor of its file is closed, however a
 * process ends.
 */
import { flock, LOCK_EX, LOCK_NB } from './libc.ts'

/**
 * Locks the file for this descriptor alone. Returns false where another one has it, or the file system has no locks.
 */
export function tryLock(fd: number): boolean {
  return flock(fd, LOCK_EX | LOCK_NB) === 0
}
