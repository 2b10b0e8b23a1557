/**
 * dump-to-stdout --via and what it owes, with the real CRIU: who holds and who owes may be killed, and every copy can
 * be told.
 */

import { once } from 'node:events'
import {
  closeSync,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { HEADER_BYTES } from '../../lib/format/frame.ts'
import { PREAMBLE_BYTES } from '../../lib/format/preamble.ts'
import { within } from '../expect.ts'
import { real } from '../support/criu.ts'
import { patternLoad } from '../support/loads.ts'
import { eventually, type Running, run, start } from '../support/run.ts'
import { command, copyOf, type Stage, staged } from '../support/stage.ts'

const test = suite('real-criu/debts')
const load = patternLoad(8)
const id = 'web-1'

/** A hand-over of which the target holds the copy, and the source does not know it yet. */
interface Held extends Stage {
  dumping: Running
  held: string
  /** The options that lead to the target. */
  via: string[]
  /** Runs restore-from-socket there, by hand. */
  byHand(...options: string[]): Running
  settle(): ReturnType<typeof run>
  /** Our number of the restore-from-socket that holds the copy. */
  holder: number
  /** Lets the source hear its target; its verdict does not reach it. */
  letGo(): Promise<void>
  /** Throws unless the copy runs, whole; the process here ran on for a while after the dump. */
  moved(): Promise<void>
  /** The link to its target is cut, and another one works. */
  mend(): Promise<void>
}

/** Our number of the first process that `is` it. */
function find(is: (pid: string) => boolean): number | undefined {
  return readdirSync('/proc')
    .filter((pid) => /^\d+$/.test(pid))
    .filter((pid) => {
      try {
        return is(pid)
      } catch {
        return false
      }
    })
    .map(Number)[0]
}

function words(pid: string): string[] {
  return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0')
}

async function whileHeld(criu: string, body: (held: Held) => Promise<void>): Promise<void> {
  await staged(criu, load, async (stage) => {
    const { folder, host, load, source, there } = stage
    const held = join(folder, 'held')
    const [script, fifo, stdin] = [join(folder, 'via.sh'), join(folder, 'go'), join(folder, 'stdin')]
    await run('mkfifo', [fifo])
    writeFileSync(stdin, '')
    const target = `${host.enter.join(' ')} ${command('restore-from-socket')} --from - -D ${held}`
    // What the target says after its preamble, `hello` and `reserved` waits for the FIFO.
    const begin = `dd bs=1 count=${PREAMBLE_BYTES + 2 * (HEADER_BYTES + 4)} status=none`
    writeFileSync(script, `cat - ${stdin} | ${target} | { ${begin}; read go < ${fifo}; cat; }`)
    const via = ['--via', `sh ${script}`, '--timeout', '20', '-D', source]
    const dumping = start('setsid', ['dump-to-stdout', '-v', '-t', String(load.pid), '--snapshot', id, ...via])
    const atGate = (pid: string): boolean =>
      words(pid)[0] === 'flock' && readlinkSync(`/proc/${pid}/cwd`).startsWith(`${held}/.ferry-restore-`)
    await eventually(() => find(atGate), 'a held copy')
    writeFileSync(script, target)
    const holder = find((pid) => /node$/.test(words(pid)[0] ?? '') && words(pid).includes(held)) ?? 0
    const fd = openSync(fifo, 'r+')
    try {
      await body({
        ...stage,
        dumping,
        held,
        holder,
        via,
        byHand: (...options) => there(command('restore-from-socket'), ['-D', held, ...options]),
        settle: () => run('dump-to-stdout', ['-v', '--settle', id, ...via]),
        moved: () => load.whole(host.outerPid(load.pid)),
        async letGo() {
          process.kill(find((pid) => words(pid).includes(stdin)) ?? 0, 'SIGSTOP')
          writeFileSync(script, 'false')
          writeSync(fd, 'go\n')
          await load.gone
        },
        async mend() {
          writeFileSync(script, target)
          process.kill(find((pid) => words(pid).includes(stdin)) ?? 0, 'SIGKILL')
          await dumping.says(/is held until its source says/)
        },
      })
    } finally {
      writeSync(fd, 'go\n')
      // What leads to the target has its stderr, and ends with the target.
      dumping.child.kill('SIGKILL')
      closeSync(fd)
    }
  })
}

function debts(criu: string): void {
  const play = (body: (held: Held) => Promise<void>) => () => whileHeld(criu, body)
  /** The source is killed, and the target holds its copy. */
  const loseSource = async (dumping: Running): Promise<void> => {
    dumping.child.kill('SIGKILL')
    await dumping.says(/is held until its source says/)
  }
  const kill = async (pid: number, signal: NodeJS.Signals = 'SIGKILL'): Promise<void> => {
    process.kill(pid, signal)
    await eventually(() => (existsSync(`/proc/${pid}/exe`) ? undefined : true), 'its end')
  }

  test(
    'dump-to-stdout is killed while the target holds: --settle drops the copy',
    play(async (scene) => {
      const { dumping, source, held, via, settle, load, stayed } = scene
      await loseSource(dumping)
      await load.runsOn()
      assert.is(await copyOf(scene), 'held')
      const next = await run('dump-to-stdout', ['-t', String(load.pid), ...via.with(1, 'false')])
      assert.is(next.code, 3, next.stderr)
      assert.match(next.stderr, /snapshot web-1 runs on here, and the target, which may hold a copy, was not told/)
      assert.match(next.stderr, new RegExp(`hint: tell it with: dump-to-stdout -D ${source} --settle web-1 --via`))
      const settled = await settle()
      assert.is(settled.code, 0, settled.stderr)
      assert.match(settled.stderr, /web-1 not handed over: the source runs on, the target runs nothing of it/)
      await stayed()
      assert.not(existsSync(join(source, `${id}.owed`)))
      assert.equal(readdirSync(held), ['stats-restore'])
      const again = await settle()
      assert.is(again.code, 1)
      assert.match(again.stderr, /no verdict of snapshot web-1 waits for delivery/)
    }),
  )

  test(
    'dump-to-stdout is killed while the target holds, and the process ends by itself: the copy is older, and dropped',
    play(async (scene) => {
      const { dumping, settle, load } = scene
      await loseSource(dumping)
      await load.runsOn()
      load.kill()
      const settled = await settle()
      assert.is(settled.code, 0, settled.stderr)
      assert.match(settled.stderr, /web-1 not handed over/)
      assert.is(await copyOf(scene), 'none')
    }),
  )

  test(
    'both are killed when the process is gone: --settle lets the copy run',
    play(async ({ dumping, source, held, holder, letGo, mend, settle, arrived }) => {
      await letGo()
      dumping.child.kill('SIGKILL')
      await mend()
      await kill(holder)
      const settled = await settle()
      assert.is(settled.code, 0, settled.stderr)
      assert.match(settled.stderr, /handed over: the source is gone, it runs on the target/)
      await arrived()
      assert.not(existsSync(join(source, `${id}.owed`)))
      assert.not(readdirSync(held).some((name) => name.startsWith('.ferry-restore-')))
    }),
  )

  test(
    'the holder is killed, and the copy is dropped by hand',
    play(async (scene) => {
      const { dumping, held, holder, byHand, stayed } = scene
      await loseSource(dumping)
      await kill(holder)
      const stranger = await byHand('--drop', 'web-2').ended
      assert.match(stranger.stderr, /no copy of snapshot web-2 is held/)
      assert.is(await copyOf(scene), 'held')
      const dropped = await byHand('--drop', id).ended
      assert.is(dropped.code, 0, dropped.stderr)
      await stayed()
      assert.not(readdirSync(held).some((name) => name.startsWith('.ferry-restore-')))
    }),
  )

  test(
    'the holder gets SIGTERM: it says how to decide, and the copy outlives it',
    play(async (scene) => {
      const { dumping, holder, load, byHand, moved } = scene
      await loseSource(dumping)
      await kill(holder, 'SIGTERM')
      await within(dumping.says(/(is held until its source says[\s\S]*){2}--let-run web-1/), 'how to decide')
      load.kill()
      assert.is(await copyOf(scene), 'held')
      const told = await byHand('--let-run', id).ended
      assert.is(told.code, 0, told.stderr)
      await moved()
    }),
  )

  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    test(
      `dump-to-stdout gets ${signal} when the process is gone and the target out of reach: it says what is owed`,
      play(async (scene) => {
        const { dumping, source, letGo, mend, settle, arrived } = scene
        await letGo()
        // The commands that lead to the target still have its stderr.
        const exited = once(dumping.child, 'exit')
        const pid = dumping.child.pid as number
        // A ctrl-C goes to the whole process group: to the target and its criu too.
        process.kill(signal === 'SIGINT' ? -pid : pid, signal)
        assert.equal(await exited, [signal === 'SIGINT' ? 130 : 143, null])
        assert.match(dumping.stderr(), /web-1 is gone from here, and the target, which may hold a copy, was not told/)
        assert.ok(existsSync(join(source, `${id}.owed`)))
        await mend()
        const settled = await settle()
        assert.is(settled.code, 0, settled.stderr)
        await arrived()
      }),
    )
  }

  test('a command that neither reads nor ends is ended with us', () =>
    staged(criu, load, async ({ load: { pid, runsOn }, source }) => {
      const number = String(1e6 + process.pid)
      for (const via of [`sleep ${number}`, `sh -c "sleep ${number}; true" | cat`]) {
        const dump = start('dump-to-stdout', ['-t', String(pid), '-D', source, '--timeout', '2', '--via', via])
        await eventually(() => find((one) => words(one)[0] === 'sleep' && words(one)[1] === number), 'the command')
        assert.equal(await once(dump.child, 'exit'), [6, null])
        assert.is(
          find((one) => words(one).includes(number)),
          undefined,
        )
        await runsOn()
      }
    }))

  test('the command may ask for a password at the terminal', () =>
    staged(criu, load, async ({ load: { pid }, source, folder, host, arrived }) => {
      const target = `${host.enter.join(' ')} ${command('restore-from-socket')} --from - -D ${join(folder, 'held')}`
      const script = join(folder, 'via.sh')
      writeFileSync(script, `read -r word </dev/tty; [ "$word" = secret ] && ${target}`)
      const line = `dump-to-stdout -v -t ${pid} -D ${source} --timeout 5 --via 'sh ${script}'`
      const ran = await run('script', ['-qec', line, '/dev/null'], { input: Buffer.from('secret\n') })
      assert.is(ran.code, 0, ran.stdout.toString())
      await arrived()
    }))
}

if (typeof real === 'string') console.log(`skipped: ${real}`)
else debts(real.path)

test.run()
