/** A rename that replaces nothing, in a directory that is open. */
import { check } from './fd.ts'
import { EEXIST, EINVAL, ENOSYS, RENAME_NOREPLACE, renameat2 } from './libc.ts'

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
