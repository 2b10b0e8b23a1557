import { hostname } from 'node:os'
import { type SnapshotId, snapshotId } from '../format/names.ts'

/** An id for a snapshot that nobody named: host, time and a random part, in the order of their making. */
export function freshId(): SnapshotId {
  const host = hostname()
    .replace(/[^A-Za-z0-9]/g, '-')
    .slice(0, 24)
  const time = new Date()
    .toISOString()
    .replace(/[^0-9T]/g, '')
    .slice(0, 15)
  return snapshotId(`${time}-${host}-${Math.floor(Math.random() * 2 ** 32).toString(36)}`)
}
