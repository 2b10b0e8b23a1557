import { hostname } from 'node:os'
import { type SnapshotId, snapshotId } from '../format/names.ts'

/** Makes an id for a snapshot that nobody named: time, host and a random part. Ids sort by the time of their making. */
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
