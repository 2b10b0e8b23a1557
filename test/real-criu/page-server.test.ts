/** The real CRIU dumps into our page server, and its own page server writes the same pages. */
import { mkdirSync, readdirSync } from 'node:fs'
import net from 'node:net'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { SocketPageServer } from '../../lib/criu/page-server.ts'
import { Fault } from '../../lib/fault.ts'
import { duplicate, type Fd } from '../../lib/kernel/fd.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { readSome, writeAll } from '../../lib/kernel/transfer.ts'
import { socketPair } from '../../lib/kernel/unix.ts'
import { rejectsFault, waits, within } from '../expect.ts'
import { pagesByAddress } from '../support/chains.ts'
import { real } from '../support/criu.ts'
import { startHost } from '../support/host.ts'
import { type Load, loads, patternLoad, type Started } from '../support/loads.ts'
import { dumpToUs, givenAway, recordedTalks, writeImages } from '../support/page-server.ts'
import { type Running, shell, start, temporary } from '../support/run.ts'

const test = suite('real-criu/page-server')
const none = () => false

/** The socket of the first client of a TCP port of ours. */
async function portForOne(): Promise<{ port: number; socket: Promise<Fd> }> {
  const server = net.createServer({ pauseOnConnect: true }).listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  const socket = new Promise<Fd>((resolve) => {
    server.once('connection', (client) => {
      const { _handle } = client as net.Socket & { _handle: { fd: number } }
      resolve(duplicate(_handle.fd))
      client.destroy()
      server.close()
    })
  })
  return { port: (server.address() as net.AddressInfo).port, socket }
}

if (typeof real === 'string') console.log(`skipped: the page server: ${real}`)
else withCriu(real.path, real.version)

function withCriu(criu: string, version: string): void {
  /** Restores on a host of its own, and lets the copy see whether it is whole. */
  const verify = async (started: Started, directory: string): Promise<void> => {
    const target = await startHost()
    try {
      const line = [...target.enter, criu, 'restore', '-d', '-D', directory, '-o', 'restore.log'].join(' ')
      const restored = await shell(line)
      assert.is(restored.code, 0, restored.stderr)
      await started.verify(target.outerPid(started.pid))
    } finally {
      await target.stop()
    }
  }

  /** A dump whose CLOSE was answered ends well, and what it wrote is whole. */
  const finished = async (dump: Running, started: Started, images: string): Promise<void> => {
    const ended = await within(dump.ended)
    assert.is(ended.code, 0, ended.stderr)
    await within(started.gone)
    await verify(started, images)
  }

  for (const load of [patternLoad(16), loads[1] as Load]) {
    test(`${load.name}: dumped into our page server, and restored, with CRIU ${version}`, async () => {
      const { path, remove } = temporary()
      const started = await load.start(path)
      try {
        const images = join(path, 'images')
        const { socket, criu: dump } = dumpToUs(criu, started.pid, images)
        const source = new SocketPageServer(socket, none)
        const names = await within(writeImages(source, images))
        assert.is(names[0], 'pages-65537.img')
        assert.not.ok(names.includes('inventory.img'))
        assert.ok(await waits(dump.ended), 'criu waits for the answer to CLOSE')
        assert.ok(process.kill(started.pid, 0))
        await source.answerClose(true)
        await finished(dump, started, images)
      } finally {
        started.kill()
        remove()
      }
    })
  }

  test(`over TCP, with CRIU ${version}`, async () => {
    const { path, remove } = temporary()
    const started = await patternLoad(4).start(path)
    try {
      const { port, socket } = await portForOne()
      const to = ['--page-server', '--address', '127.0.0.1', '--port', String(port)]
      const images = join(path, 'images')
      mkdirSync(images)
      const dump = start(criu, ['dump', '-t', String(started.pid), '-D', images, '-o', 'dump.log', ...to])
      const source = new SocketPageServer(await within(socket), none)
      await within(writeImages(source, images))
      await source.answerClose(true)
      await finished(dump, started, images)
    } finally {
      started.kill()
      remove()
    }
  })

  test(`a dump fails, and its tasks run on, unless CLOSE is answered well, with CRIU ${version}`, async () => {
    const { path, remove } = temporary()
    const started = await patternLoad(4).start(path)
    try {
      const refused = dumpToUs(criu, started.pid, join(path, 'refused'))
      const refusing = new SocketPageServer(refused.socket, none)
      mkdirSync(join(path, 'pages'))
      await within(writeImages(refusing, join(path, 'pages')))
      await refusing.answerClose(false)
      assert.is.not((await within(refused.criu.ended)).code, 0)
      await started.runsOn()

      const cut = dumpToUs(criu, started.pid, join(path, 'cut'))
      const cutting = new SocketPageServer(cut.socket, none)
      const images = cutting.images[Symbol.asyncIterator]()
      assert.is((await within(images.next())).value?.name, 'pages-65537.img')
      cutting.destroy(new Fault('ABORTED', 'enough'))
      await rejectsFault('ABORTED', images.next())
      assert.is.not((await within(cut.criu.ended)).code, 0)
      await started.runsOn()
      await started.whole()
    } finally {
      started.kill()
      remove()
    }
  })

  test(`a CRIU ${version} that dies in the middle is a dump that failed`, async () => {
    const { path, remove } = temporary()
    const started = await patternLoad(16).start(path)
    try {
      const { socket, criu: dump } = dumpToUs(criu, started.pid, join(path, 'images'))
      const images = new SocketPageServer(socket, none).images[Symbol.asyncIterator]()
      const body = (await within(images.next())).value?.body
      if (body?.kind !== 'pieces') throw new Error('no pieces')
      const taking = (async () => {
        let pieces = 0
        for await (const _ of body.pieces) if (++pieces === 1) process.kill(dump.child.pid as number, 'SIGKILL')
      })()
      await rejectsFault('FAILED_DUMP', taking)
      await rejectsFault('FAILED_DUMP', images.next())
      await within(dump.ended)
      await started.runsOn()
    } finally {
      started.kill()
      remove()
    }
  })

  test(`CRIU ${version} writes the same pages of the same conversation`, async () => {
    const { path, remove } = temporary()
    try {
      const talks = recordedTalks().filter((talk) => layoutOf(talk.criu) === layoutOf(version))
      assert.ok(talks.length > 0)
      for (const talk of talks) {
        const [stock, ours] = [join(path, `stock-${talk.criu}`), join(path, `ours-${talk.criu}`)]
        mkdirSync(stock)
        mkdirSync(ours)
        const { ours: client, theirs } = givenAway()
        const server = start(criu, ['page-server', '-D', stock, '-o', 'server.log', '--ps-socket', '3'], {
          fds: [theirs],
        })
        closeFd(theirs)
        await replay(client, talk.bytes)
        const ended = await within(server.ended)
        assert.is(ended.code, 0, ended.stderr)

        const [here, there] = socketPair()
        const source = new SocketPageServer(here, none)
        const writing = writeImages(source, ours).then(() => source.answerClose(true))
        await replay(there, talk.bytes)
        await within(writing)

        const images = (folder: string): string[] =>
          readdirSync(folder)
            .filter((name) => /^page.*\.img$/.test(name))
            .sort()
        assert.equal(images(ours), images(stock))
        const pagemaps = images(ours).filter((name) => name.startsWith('pagemap-'))
        assert.is(pagemaps.length, 3)
        for (const name of pagemaps) {
          const [one, two] = [pagesByAddress(ours, name), pagesByAddress(stock, name)]
          assert.ok(one.size > 1)
          assert.equal([...one.keys()], [...two.keys()], name)
          for (const [vaddr, page] of one) assert.equal(page, two.get(vaddr), `${name} at ${vaddr}`)
        }
      }
    } finally {
      remove()
    }
  })
}

/** CRIU changed it with 4.2. */
function layoutOf(version: string): string {
  const [major = 0, minor = 0] = version.split('.').map(Number)
  return major < 4 || (major === 4 && minor < 2) ? 'old' : 'new'
}

/** Says it all, takes the answers as they come, and leaves when there are no more. */
async function replay(socket: Fd, bytes: Buffer): Promise<void> {
  const answers = (async () => {
    const answer = Buffer.alloc(64)
    let heard = 0
    for (let got = 1; got > 0 && heard < 3 + 4; heard += got) got = await readSome(socket, answer)
  })()
  await writeAll(socket, bytes, { socket: true })
  await within(answers)
  closeFd(socket)
}

test.run()
