/** A rename that replaces nothing, in a directory that is open. */
import { constants, openSync } from 'node:fs'
import { check } from './fd.ts'
import { EEXIST, EINVAL, ENOSYS, O_PATH, RENAME_NOREPLACE, renameat2 } from './libc.ts'

/**
 * Opens a directory only to reach its entries by name: this process may not be allowed to list it. Throws as open(2).
 */
export function openPath(directory: string): number {
  return openSync(directory, O_PATH | constants.O_DIRECTORY)
}

/**
 * Renames `from` to `to`, both in the directory of that descriptor. `in the way`: there is something of that name.
 * `unknown`: the file system, or the kernel, has no such rename. Throws `IO`.
 */
export function renameNew(directory: number, from: string, to: string): 'renamed' | 'in the way' | 'unknown' {
  const result = renameat2(directory, from, directory, to, RENAME_NOREPLACE)
  if (result === -EEXIST) return 'in the way'
  if (result === -EINVAL || result === -ENOSYS) return 'unknown'
  check(result, `cannot rename ${from} to ${to}`)
  return 'renamed'
}
