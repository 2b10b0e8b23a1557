/** What a real CRIU said on its socket, as fixtures/record-talk.ts wrote it down. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fixtures } from './run.ts'

export type Line =
  | { kind: 'sent'; bytes: Buffer }
  | { kind: 'answered'; bytes: Buffer }
  | { kind: 'pipe' }
  | { kind: 'end' }

export function talk(name: 'dump' | 'restore'): Line[] {
  const text = readFileSync(join(fixtures, `${name}.talk`), 'utf8').trim()
  return text.split('\n').map((line) => {
    if (line === 'pipe' || line === 'end') return { kind: line }
    const bytes = Buffer.from(line.slice(2), 'hex')
    return { kind: line.startsWith('>') ? 'sent' : 'answered', bytes }
  })
}

/** Bytes that differ at every offset and from seed to seed. */
export function pattern(bytes: number, seed = 1): Buffer {
  const out = Buffer.alloc(bytes)
  let state = seed * 2654435761
  for (let at = 0; at < bytes; at++) {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0
    out[at] = state >>> 24
  }
  return out
}
