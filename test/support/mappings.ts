/** What a process may do with its memory, as the kernel says it. */
import { readFileSync } from 'node:fs'

export interface Mapping {
  begin: number
  end: number
  /** As in `rw-p`. */
  rights: string
  /** Of a file, or empty. */
  path: string
}

export function mappings(pid: number | 'self' = 'self'): Mapping[] {
  const lines = readFileSync(`/proc/${pid}/maps`, 'utf8').trim().split('\n')
  return lines.map((line) => {
    const [range = '', rights = '', , , , path = ''] = line.split(/ +/)
    const [begin = 0, end = 0] = range.split('-').map((address) => Number.parseInt(address, 16))
    return { begin, end, rights, path }
  })
}

/** Whether this process can write at an address. */
export function isWritable(address: bigint | number): boolean {
  const at = Number(address)
  return mappings().some(({ begin, end, rights }) => begin <= at && at < end && rights.startsWith('rw'))
}
