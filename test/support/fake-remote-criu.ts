/**
 * A criu with `--remote` that does what it is told, written from the protocol of the trees that had it (2017 to June
 * 2020): one connection an image, each message in one write, blocking as criu is. `pipes` is how the last of them
 * passes images, `socket` the way before May 2020; `words` says FINISH as it was before February 2019.
 *
 * As a program it is a process of its own with a command line like criu's, for who dumps what is known by process:
 *
 *     node --import tsx test/support/fake-remote-criu.ts pre-dump -t PID -D DIR --remote --images FROM
 *         --socket PATH [--form pipes|socket] [--read NAME=SNAPSHOT] [--clobber NAME=SNAPSHOT]
 *         [--die [--unheard]] [--no-finish] [--record FILE]
 *     node --import tsx test/support/fake-remote-criu.ts pre-dump -t PID -D DIR --remote --socket PATH --replay FILE
 *     node --import tsx test/support/fake-remote-criu.ts restore -D DIR --remote --into DIRECTORY
 *         --socket PATH [--unheard]
 */
import { appendFileSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import {
  decode,
  decodeSnapshotId,
  ENOENT,
  encode,
  encodeIds,
  MessageDecoder,
  openMode,
} from '../../lib/criu-remote/messages.ts'
import { localImageEntry, localImageReplyEntry } from '../../lib/format/criu-messages.ts'
import { type Fd, makePipe } from '../../lib/kernel/fd.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { readSome, writeAll } from '../../lib/kernel/transfer.ts'
import { connectUnix, sendFd } from '../../lib/kernel/unix.ts'
import { readToEnd } from './fake-criu.ts'

export type Form = 'pipes' | 'socket'

export interface FakeRemote {
  /** Its `-D`. */
  snapshot: string
  /** Everything that was said and answered: fixtures/README.md has the form. */
  said: string[]
  push(id?: string): Promise<void>
  /** The ids in the list; undefined where there is none. */
  pull(): Promise<string[] | undefined>
  /** Opens an image; what is written goes into what this returns. */
  open(name: string, options?: { append?: boolean; snapshot?: string }): Promise<Fd>
  write(name: string, bytes: Uint8Array, options?: { append?: boolean; snapshot?: string }): Promise<void>
  /** The bytes of an image; undefined where it does not exist. */
  read(name: string, snapshot?: string): Promise<Buffer | undefined>
  /** The first answer to a read: an errno. The connection stays open. */
  ask(name: string, snapshot?: string): Promise<{ socket: Fd; error: number }>
  finish(of: 'dump' | 'restore'): Promise<void>
}

/** At img-proxy.sock or img-cache.sock. */
export function fakeRemote(path: string, snapshot: string, form: Form = 'pipes', words = false): FakeRemote {
  const said: string[] = []
  const nowhere = words ? 'null' : ''

  async function connect(name: string, of: string, mode: number): Promise<Fd> {
    const socket = await connectBlocking(path)
    said.push('connect')
    const message = encode(localImageEntry, { name, snapshot_id: of, open_mode: mode })
    said.push(`> ${message.toString('hex')}`)
    await writeAll(socket, message, { socket: true })
    return socket
  }

  async function answer(socket: Fd): Promise<number> {
    const decoder = new MessageDecoder()
    for (;;) {
      const part = Buffer.alloc(decoder.wanted)
      const got = await readSome(socket, part)
      if (got === 0) throw new Error('the connection was closed instead of an answer')
      const { body } = decoder.push(part.subarray(0, got))
      if (body === undefined) continue
      const { error } = decode(localImageReplyEntry, body)
      said.push(`< ${encode(localImageReplyEntry, { error }).toString('hex')}`)
      return error
    }
  }

  async function ask(name: string, of: string): Promise<{ socket: Fd; error: number }> {
    const socket = await connect(name, of, openMode.read)
    try {
      return { socket, error: await answer(socket) }
    } catch (error) {
      closeFd(socket)
      throw error
    }
  }

  const self: FakeRemote = {
    snapshot,
    said,
    async push(id = snapshot) {
      const socket = await connect('parent', nowhere, openMode.append)
      const message = encodeIds([id])
      said.push(`> ${message.toString('hex')}`)
      await writeAll(socket, message, { socket: true })
      closeFd(socket)
      said.push('end')
    },
    async pull() {
      const { socket, error } = await ask('parent', nowhere)
      try {
        if (error === ENOENT) return undefined
        if (error !== 0) throw new Error(`Unexpected error ${error}`)
        const bytes = await readToEnd(socket)
        said.push(`< ${bytes.toString('hex')}`)
        return idsIn(bytes)
      } finally {
        said.push('end')
        closeFd(socket)
      }
    },
    async open(name, { append = false, snapshot: of = snapshot } = {}) {
      const socket = await connect(name, of, append ? openMode.append : openMode.write)
      if (form === 'socket') return socket
      const [out, into] = makePipe()
      await sendFd(socket, out).finally(() => closeFd(socket))
      return into
    },
    async write(name, bytes, options) {
      const into = await self.open(name, options)
      try {
        said.push(`${form === 'pipes' ? 'pipe ' : ''}> ${Buffer.from(bytes).toString('hex')}`, 'end')
        await writeAll(into, bytes)
      } finally {
        closeFd(into)
      }
    },
    ask: (name, of = snapshot) => ask(name, of),
    async read(name, of = snapshot) {
      const { socket, error } = await ask(name, of)
      if (error !== 0) {
        said.push('end')
        closeFd(socket)
      }
      if (error === ENOENT) return undefined
      if (error !== 0) throw new Error(`Unexpected error ${error}`)
      let from = socket
      if (form === 'pipes') {
        const [out, into] = makePipe()
        await sendFd(socket, into).finally(() => closeFd(socket))
        from = out
      }
      const bytes = await readToEnd(from).finally(() => closeFd(from))
      said.push(`${form === 'pipes' ? 'pipe ' : ''}< ${bytes.toString('hex')}`, 'end')
      return bytes
    },
    async finish(of) {
      const name = words ? { dump: 'DUMP_FINISH', restore: 'RESTORE_FINISH' }[of] : ''
      const socket = await connect(name, nowhere, of === 'dump' ? openMode.write : openMode.read)
      // criu takes the end of the connection as the answer.
      if (of === 'restore') await readToEnd(socket)
      closeFd(socket)
      said.push('end')
    },
  }
  return self
}

/** Waits where the listener has no place, as connect(2) of criu does. */
async function connectBlocking(path: string): Promise<Fd> {
  for (;;) {
    try {
      return connectUnix(path)
    } catch (error) {
      if (!String(error).includes('EWOULDBLOCK')) throw error
      await setTimeout(5)
    }
  }
}

function idsIn(bytes: Buffer): string[] {
  const ids: string[] = []
  const decoder = new MessageDecoder()
  for (let at = 0; at < bytes.length; ) {
    const { taken, body } = decoder.push(bytes.subarray(at))
    at += taken
    if (body !== undefined) ids.push(decodeSnapshotId(body))
  }
  decoder.end()
  return ids
}

/** Says again what was recorded. Throws where it is not answered as it was then. */
export async function sayAgain(path: string, said: readonly string[]): Promise<void> {
  let socket: Fd | undefined
  let pipe: Fd | undefined
  const expect = (got: Buffer, hex: string): void => {
    if (got.toString('hex') !== hex) throw new Error(`${got.toString('hex')} instead of ${hex}`)
  }
  for (const line of said) {
    const [, piped, direction, hex = ''] = /^(pipe )?([<>]) (.*)$/.exec(line) ?? []
    if (line === 'connect') socket = connectUnix(path)
    if (socket === undefined) throw new Error(`${line} on no connection`)
    if (piped !== undefined) {
      const [out, into] = makePipe()
      pipe = direction === '>' ? into : out
      await sendFd(socket, direction === '>' ? out : into)
    }
    if (direction === '>') await writeAll(pipe ?? socket, Buffer.from(hex, 'hex'))
    else if (pipe !== undefined && direction === '<') expect(await readToEnd(pipe), hex)
    else if (direction === '<') expect(await readExactly(socket, hex.length / 2), hex)
    if (line !== 'end') continue
    if (pipe !== undefined) closeFd(pipe)
    pipe = undefined
    closeFd(socket)
  }
}

async function readExactly(socket: Fd, bytes: number): Promise<Buffer> {
  const all = Buffer.alloc(bytes)
  let filled = 0
  while (filled < bytes) {
    const got = await readSome(socket, all.subarray(filled))
    if (got === 0) break
    filled += got
  }
  return all.subarray(0, filled)
}

/** The images of a directory, inventory.img last in a dump and first in a pre-dump, as these releases write it. */
export function imagesOf(directory: string, preDump: boolean): [string, Buffer][] {
  const names = readdirSync(directory).filter((name) => name.endsWith('.img') && name !== 'inventory.img')
  const all = preDump ? ['inventory.img', ...names] : [...names, 'inventory.img']
  return all
    .filter((name) => readdirSync(directory).includes(name))
    .map((name) => [name, readFileSync(join(directory, name))])
}

/**
 * A dump or a pre-dump of what is in `from`, with the list and the parents' pagemaps read as criu does. Returns what it
 * read.
 */
export async function dumpRemote(
  criu: FakeRemote,
  from: string,
  preDump = false,
): Promise<Map<string, Buffer | undefined>> {
  const read = new Map<string, Buffer | undefined>()
  await criu.push()
  const ids = (await criu.pull()) ?? []
  const parents = ids.slice(0, ids.indexOf(criu.snapshot)).reverse()
  read.set('parent', Buffer.from(JSON.stringify(ids)))
  for (const [name, bytes] of imagesOf(from, preDump)) {
    if (name.startsWith('pagemap-')) {
      for (const parent of parents) read.set(`${name}=${parent}`, await criu.read(name, parent))
    }
    await criu.write(name, bytes)
  }
  return read
}

const options = {
  tree: { type: 'string', short: 't' },
  dir: { type: 'string', short: 'D' },
  remote: { type: 'boolean' },
  images: { type: 'string' },
  into: { type: 'string' },
  socket: { type: 'string' },
  form: { type: 'string', default: 'pipes' },
  /** A read, `NAME=SNAPSHOT`. */
  read: { type: 'string', multiple: true, default: [] as string[] },
  /** A file that what was said is added to; one that is said again. */
  record: { type: 'string' },
  replay: { type: 'string' },
  /** A write into the snapshot of an earlier dump, `NAME=SNAPSHOT`, whatever comes of it. */
  clobber: { type: 'string' },
  /** Ends in the middle of its pages, as one that is killed does. */
  die: { type: 'boolean', default: false },
  /** Kills its tree when all is written, and is killed itself before it says FINISH. */
  'no-finish': { type: 'boolean', default: false },
  /** Ends so without having waited for any answer; a restore does so after its first question. */
  unheard: { type: 'boolean', default: false },
} as const

async function program(args: string[]): Promise<void> {
  const { values, positionals } = parseArgs({ args, options, allowPositionals: true })
  const { dir = '.', images = '', into = '', socket = '', form, die } = values
  const criu = fakeRemote(socket, dir, form as Form)
  const [action] = positionals
  const record = (): void => {
    if (values.record !== undefined)
      appendFileSync(values.record, `criu ${action} -D ${dir}\n${criu.said.join('\n')}\n`)
  }
  if (values.replay !== undefined) return sayAgain(socket, readFileSync(values.replay, 'utf8').trim().split('\n'))
  if (action === 'restore') {
    if (values.unheard) {
      criu.pull().catch(() => {})
      await setTimeout(50)
      process.kill(process.pid, 'SIGKILL')
    }
    const [id] = ((await criu.pull()) ?? []).filter((one) => one === dir)
    if (id === undefined) throw new Error('could not find current snapshot id')
    mkdirSync(into, { recursive: true })
    for (const name of values.read) {
      const bytes = await criu.read(name)
      if (bytes !== undefined) writeFileSync(join(into, name), bytes)
    }
    await criu.finish('restore')
    return record()
  }
  if (die) {
    await criu.push()
    if (!values.unheard) await criu.pull()
    const pages = imagesOf(images, true).find(([name]) => name.startsWith('pages-'))
    await criu.write(pages?.[0] ?? '', (pages?.[1] ?? Buffer.alloc(0)).subarray(0, 4096))
    process.kill(process.pid, 'SIGKILL')
  }
  const read = await dumpRemote(criu, images, action === 'pre-dump')
  if (values.clobber !== undefined) {
    const [name = '', snapshot = ''] = values.clobber.split('=')
    await criu.write(name, Buffer.alloc(4096), { snapshot }).catch(() => {})
  }
  for (const asked of values.read) read.set(asked, await criu.read(...(asked.split('=') as [string, string])))
  if (values['no-finish']) {
    process.kill(Number(values.tree), 'SIGKILL')
    process.kill(process.pid, 'SIGKILL')
  }
  if (action === 'dump') await criu.finish('dump')
  record()
  console.log(
    JSON.stringify(Object.fromEntries([...read].map(([what, bytes]) => [what, bytes?.toString('hex') ?? null]))),
  )
}

if (process.argv[1] === import.meta.filename) await program(process.argv.slice(2))
