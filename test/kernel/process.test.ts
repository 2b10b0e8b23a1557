import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { commandLine, descendants, memoryOfTree, openProcess, startTime, tracedBy } from '../../lib/kernel/process.ts'
import { reasonOf, waits, within } from '../expect.ts'
import { eventually } from '../support/run.ts'

const test = suite('kernel/process')

test('the end of a process that is not ours is seen, also before its parent has heard of it', async () => {
  // The shell does not wait for its child, which stays a zombie.
  const shell = spawn('sh', ['-c', 'sleep 1000 & echo $!; exec sleep 1000'], { stdio: ['ignore', 'pipe', 'ignore'] })
  const [line] = (await once(shell.stdout, 'data')) as [Buffer]
  const pid = Number(line.toString())
  const child = openProcess(pid)
  assert.ok(child !== undefined)
  assert.ok(await waits(child.ended))
  assert.type(startTime(pid), 'number')
  assert.equal(descendants(shell.pid as number), [pid])
  child.kill()
  await within(child.ended)
  assert.is(startTime(pid), undefined, 'a zombie has ended')
  child.close()
  child.close()
  shell.kill('SIGKILL')
})

test('the memory of a tree: its own, not that of files, and its children’s', async () => {
  const hog = (child: string): string => `${child} $x = "x" x (16 << 20); print "ready\\n"; sleep 1000`
  const tree = spawn('perl', ['-e', `$| = 1; ${hog('fork;')}`], { stdio: ['ignore', 'pipe', 'ignore'] })
  const said: string[] = []
  tree.stdout.on('data', (text: Buffer) => said.push(text.toString()))
  await eventually(() => said.join('').split('ready').length > 2 || undefined, 'two processes')
  const [child = 0] = descendants(tree.pid as number)
  const [alone, both] = [memoryOfTree(child), memoryOfTree(tree.pid as number)]
  assert.ok(alone > 16 * 2 ** 20 && alone < 80 * 2 ** 20, `${alone}`)
  assert.ok(both > alone + 16 * 2 ** 20, `${both} for both, ${alone} for one`)
  assert.is(memoryOfTree(0), 0)
  for (const pid of [child, tree.pid as number]) process.kill(pid, 'SIGKILL')
})

test('a process that is forgotten is waited for no more', async () => {
  const own = openProcess(process.pid)
  own?.close()
  assert.instance(await reasonOf(own?.ended ?? Promise.resolve()), Error)
})

test('there is no process 0, nor one beyond the largest number', () => {
  for (const pid of [0, -1, 2 ** 22 + 1]) {
    assert.is(openProcess(pid), undefined)
    assert.is(startTime(pid), undefined)
    assert.equal(commandLine(pid), [''])
    assert.equal(descendants(pid), [])
  }
})

test('a number and its start time name a process', async () => {
  const [one, two] = [spawn('sleep', ['1000']), spawn('sleep', ['1000'])]
  await eventually(() => commandLine(two.pid as number)[0] === 'sleep' || undefined, 'the start')
  assert.equal(commandLine(one.pid as number), ['sleep', '1000', ''])
  assert.is(startTime(one.pid as number), startTime(one.pid as number))
  assert.ok((startTime(one.pid as number) as number) > 0)
  for (const child of [one, two]) child.kill('SIGKILL')
})

test('who traces whom', async () => {
  assert.equal(tracedBy(process.pid), [])
  // PTRACE_SEIZE of its child by perl, which then waits.
  const code = `my $c = fork; if (!$c) { sleep 1000; exit } syscall(101, 0x4206, $c, 0, 0) == 0 or die; $| = 1; print "$c\\n"; sleep 1000`
  if (process.arch !== 'x64') return void console.log('skipped: the number of ptrace is known for x86-64 here')
  const tracer = spawn('perl', ['-e', code], { stdio: ['ignore', 'pipe', 'inherit'] })
  const [line] = (await once(tracer.stdout, 'data')) as [Buffer]
  const tracee = Number(line.toString())
  assert.equal(tracedBy(tracer.pid as number), [tracee])
  process.kill(tracee, 'SIGKILL')
  tracer.kill('SIGKILL')
})

test.run()
