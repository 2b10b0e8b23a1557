/** A criu that dumps into a page server of ours, conversations that one had, and clients that replay them. */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import { type Layout, layouts, type PsRecord } from '../../lib/format/page-server.ts'
import type { Fd } from '../../lib/kernel/fd.ts'
import * as libc from '../../lib/kernel/libc.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { socketPair } from '../../lib/kernel/unix.ts'
import type { ImageSource } from '../../lib/stream/image.ts'
import { fixtures, type Running, start } from './run.ts'

/** The types of dst_id that CRIU sends. */
export const dstType = { task: 1, shmem: 2 } as const

/** A record as CRIU sends it. */
export function encodeRecord(layout: Layout, said: Partial<PsRecord> & { command: number }): Buffer {
  const { command, flags = 0, pages = 0, vaddr = 0, type = 0, id = 0 } = said
  const bytes = Buffer.alloc(layout)
  bytes.writeUInt32LE(command + flags * 2 ** 16, 0)
  if (layout === layouts.old) bytes.writeUInt32LE(pages, 4)
  else bytes.writeBigUInt64LE(BigInt(pages), 8)
  bytes.writeBigUInt64LE(BigInt(vaddr), layout - 16)
  bytes.writeBigUInt64LE(BigInt(id) * 256n + BigInt(type), layout - 8)
  return bytes
}

/** Two ends of a connection; `theirs` blocks, as programs expect of what they are given. */
export function givenAway(): { ours: Fd; theirs: Fd } {
  const [ours, theirs] = socketPair()
  libc.fcntl(theirs, libc.F_SETFL, libc.O_RDWR)
  return { ours, theirs }
}

export interface DumpToUs {
  /** Where the pages come. */
  socket: Fd
  criu: Running
}

/** Starts `criu dump -t PID -D DIRECTORY` with its pages sent to the socket that is returned. */
export function dumpToUs(criu: string, pid: number, directory: string, options: string[] = []): DumpToUs {
  mkdirSync(directory, { recursive: true })
  const { ours, theirs } = givenAway()
  // The first descriptor that is passed on has number 3.
  const args = ['dump', '-t', String(pid), '-D', directory, '-o', 'dump.log', '--page-server', '--ps-socket', '3']
  const running = start(criu, [...args, ...options], { fds: [theirs] })
  closeFd(theirs)
  return { socket: ours, criu: running }
}

/** Writes all images of a source into a directory that is there. Returns their names, in order. */
export async function writeImages(source: ImageSource, directory: string): Promise<string[]> {
  const names: string[] = []
  for await (const { name, body } of source.images) {
    if (body.kind !== 'pieces') throw new Error('a pipe')
    const pieces: Buffer[] = []
    for await (const piece of body.pieces) pieces.push(Buffer.from(piece))
    writeFileSync(join(directory, name), Buffer.concat(pieces), { flag: 'wx' })
    names.push(name)
  }
  return names
}

export interface RecordedTalk {
  /** The version of the CRIU that said it. */
  criu: string
  /** All that it said. */
  bytes: Buffer
}

/** The conversations in fixtures/page-server. */
export function recordedTalks(): RecordedTalk[] {
  const folder = join(fixtures, 'page-server')
  const packed = readdirSync(folder).filter((name) => /^\d.*\.gz$/.test(name))
  return packed.sort().map((name) => ({
    criu: basename(name, '.gz'),
    bytes: gunzipSync(readFileSync(join(folder, name))),
  }))
}
