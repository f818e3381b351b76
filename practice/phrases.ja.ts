/**
 * Japanese: what the practice model understands and says. The form of the table is in phrases.ts.
 */

import type { Kind, Language, Patterns, Sentences } from "./phrases.ts";

/** A file or folder: text in quotes, or a word with a dot or a slash in it. */
const PATH = "(?<path>`[^`]+`|\"[^\"]+\"|'[^']+'|[\\w~@./\\\\-]*[./\\\\][\\w~@./\\\\-]*)";
/** A folder: any word without Japanese characters. */
const FOLDER = '(?<path>`[^`]+`|"[^"]+"|[\\w~@./\\\\-]+)(?:フォルダー?|ディレクトリー?)?';
const IT = "(?:それ|これ|その(?:ファイル|中身|スクリプト|プログラム))";
/** The verbs of requests. In Japanese the verb is the last word of the sentence. */
const READ = "(?:読んで|読み返して|読み直して|開いて|見せて|表示して|確認して|要約して)(?:みて)?";
const WRITE = "(?:書いて|書き込んで|書き出して|保存して|入れて)(?:おいて|みて)?";
const CHANGE = "(?:変えて|変更して|置き換えて|書き換えて|置換して|直して)";
const RUN = "(?:実行(?:して|し続けて)|走らせて|動かして|動かし続けて)(?:みて)?";
const MAKE = "(?:作って|作成して|書いて)";
/** "If it is after 08:00 and before 12:00, ". */
const WHEN =
  "(?:(?<after>[\\d:]+)時?(?:を過ぎて|以降で?|より(?:後|あと)で?)(?:、?(?<before>[\\d:]+)時?(?:より前|前))?" +
  "(?:いたら|なら|だったら|であれば)、?)?";
const NOTE = "(?:覚えて(?:おいて)?|記憶して(?:おいて)?|メモして(?:おいて)?|忘れないで)";
const I = "(?:私|わたし|僕|ぼく|俺)";
const WHAT = "(?:何|なに|なん|誰|だれ|どこ|いつ|いくつ|どれ)";
/** The end of a statement. */
const IS = `(?:です|だよ|だ|といいます|と言います|と申します)(?:ね|よ)?(?=[、。！!;；\\s]|と${NOTE}|$)`;

function patterns(...sources: string[]): RegExp[] {
  return sources.map((source) => new RegExp(source, "isu"));
}

const PATTERNS: Patterns = {
  read: patterns(
    `^(?<paths>.*[./\\\\].*?)(?:の(?:中身|内容|全文))?[をも](?:もう一度)?${READ}$`,
    `^(?<paths>.*[./\\\\].*?)(?:の(?:中身|内容))?(?:には?|は)${WHAT}(?:[がとて].*)?$`,
    `^(?<paths>.*[./\\\\].*?)の(?:中身|内容)(?:は|を教えて)$`,
    `^(?:(?:${IT}|中身|内容)を?)?(?:もう一度)?${READ}$`,
  ),
  run: patterns(
    `^(?:bashで|シェルで)?(?:コマンド)?\`(?<command>[^\`]+)\`(?:というコマンド)?を?${RUN}$`,
    "^`(?<command>[^`]+)`$",
    `^(?:bashで|シェルで)?(?<command>[\\w./~][\\x20-\\x7e]*?)を${RUN}$`,
    `^(?<script>(?:${IT}を)?${RUN})$`,
  ),
  write: patterns(
    `^${PATH}には?「(?<content>[^」]*)」(?:と|という(?:内容|文)を|を)?${WRITE}$`,
    `^「(?<content>[^」]*)」[とを]${PATH}に${WRITE}$`,
    `^${PATH}に(?<content>.+?)[とを]${WRITE}$`,
    `^(?<content>.+?)[とを]${PATH}に${WRITE}$`,
    `^「(?<prints>[^」]*)」[とを](?:表示|出力)する(?:スクリプト|プログラム)?${PATH}を${MAKE}$`,
    `^(?:新しい)?(?:ファイル)?${PATH}(?:という(?:名前の)?ファイル)?を${MAKE}$`,
  ),
  edit: patterns(
    `^${PATH}の(?:中の)?「(?<old>[^」]+)」を「(?<new>[^」]*)」に${CHANGE}$`,
    `^${PATH}の(?:中の)?(?<old>.+?)を(?<new>.+?)に${CHANGE}$`,
    `^「(?<old>[^」]+)」を「(?<new>[^」]*)」に${CHANGE}$`,
    `^(?<old>.+?)を(?<new>.+?)に${CHANGE}$`,
  ),
  list: patterns(
    "^(?:(?:ワークスペース|ここ|この(?:フォルダー?|ディレクトリー?))(?:に|の中)?(?:ある|の))?" +
      "(?:すべての|全部の)?ファイルの?(?:一覧|リスト)(?:を.*)?$",
    "^(?:ワークスペースの)?ファイルを(?:全部)?(?:一覧して|一覧にして|並べて|見せて)$",
    "^(?:ワークスペース|ここ)(?:の中)?には?(?:何|どんなファイル)が.+$",
    "^どんなファイルが.+$",
    `^${FOLDER}(?:の中)?(?:にある|の)ファイルの?(?:一覧|リスト)(?:を.*)?$`,
    `^${FOLDER}(?:の中)?には?(?:何|どんなファイル)が.+$`,
    "^ls$",
  ),
  time: patterns(
    "^(?:今|いま)は?、?何時",
    "^何時",
    "^(?:今日は?)何(?:日|曜日)",
    "^(?:今日の|現在の|今の)?(?:日付|時刻|日時|時間)(?:は|を教えて|を見せて)",
  ),
  remember: patterns(
    `^(?:${NOTE})[:：、]\\s*(?<content>.+)$`,
    `^(?<content>.+?)(?:という)?(?:こと)?(?:を|と|って|は)?[、。]?${NOTE}$`,
  ),
  recall: patterns(
    "^(?:記憶|メモリー?|メモ)(?:の中)?(?:から|で)(?<query>.+?)を(?:検索して|探して|調べて)$",
    "^(?<query>.+?)について(?:何か|何を)?(?:覚えて|知って)い?(?:る|ます).*$",
    `^(?<query>.+?)について、?(?:${I}は)?(?:何|なに)を?(?:話し|言い|言っ|伝え|教え).*$`,
  ),
  tell: patterns(
    `^${WHEN}(?:持ち主|オーナー)に(?:伝える|伝えて|知らせる|知らせて)(?:ください)?[：:]\\s*(?<content>.+)$`,
    `^${WHEN}(?:持ち主|オーナー)に「(?<content>[^」]+)」と(?:伝える|伝えて|知らせる|知らせて|言う|言って).*$`,
    `^${WHEN}(?<name>[^、。]+?)に[「『]?(?<greeting>おはよう(?:ございます)?|こんにちは|こんばんは|おやすみ(?:なさい)?)` +
      "[」』]?と(?:言う|言って|挨拶する|挨拶して).*$",
  ),
  summary: patterns(
    "(?:会話|やりとり|話|これまで|ここまで|履歴|上記).{0,20}(?:要約|まとめ)(?:して|を|て)",
    "^(?:要約して|まとめて)",
    "\\bsummari[sz](?:e|ing)\\b.{0,60}\\b(?:conversation|chat|messages|history|so far)\\b",
  ),
  // The sections write to the model in English in every language.
  summarySystem: patterns(
    "\\b(?:you|your task is to|please) (?:only )?summari[sz]e (?:the |this )?conversation",
    "^summari[sz]e ",
  ),
  identity: patterns(
    "本物(?:の|です|なの|$)",
    "(?:あなた|君|きみ)(?:は|って|の名前)",
    "(?:どの|何の|なんの|どんな|何という)モデル",
    "自己紹介",
    "(?:AI|人間|ロボット|ボット|言語モデル|練習用(?:の)?モデル)(?:です|なの|$)",
  ),
  help: patterns("何が(?:でき|出来)", "使い方", "^ヘルプ", "^help$", "どんなツール", "^助けて"),
  greeting: patterns(
    "^(?:(?<hour>こんにちは|こんばんは|おはよう(?:ございます)?)|やあ|どうも|ども|はじめまして|ハロー|もしもし|テスト)" +
      "(?:[、,！!。]?(?:世界|ルナ|luna|claude))?(?:[、！!。](?:今日も)?よろしく)?$",
  ),
  goodbye: patterns("^(?:さようなら|さよなら|またね|バイバイ|おやすみ(?:なさい)?|では、?また)"),
  thanks: patterns(
    "^(?:どうも)?(?:ありがとう(?:ございます|ございました)?|助かりました|助かった|了解(?:です)?" +
      "|いいね|すごい(?:です)?|なるほど|わかりました|OK|オーケー)$",
  ),
  howAreYou: patterns("元気(?:です|$)", "調子は(?:どう|いかが)"),
  count: patterns("(?:(?<from>\\d+)から)?(?<to>\\d+)まで(?:ゆっくり)?(?:数を?)?数えて"),
  haiku: patterns("俳句|短歌|詩を"),
  long: patterns(
    "(?:長い|詳しい)(?:(?<list>リスト|一覧|箇条書き)|お?話|物語|文章|文|返事|返信|メッセージ|説明|答え)",
    "長(?:く|々と)(?:話して|書いて|答えて)",
  ),
  code: patterns("コード"),
  story: patterns("お話|物語"),
  joke: patterns("ジョーク|冗談|小話|笑わせて"),
  think: patterns("^(?<topic>.+?)について(?:よく|じっくり|しっかり)?考えて"),
  remind: patterns(
    "^(?:(?<why>[^。！？]+[。！])\\s*)?(?<what>[^。]+?)(?:こと|の|よう(?:に)?)?(?:を|と)?" +
      "(?:思い出させて|リマインドして|知らせて)(?<question>、.*(?:提案|考えて).*)?$",
  ),
  say: patterns(
    "^(?<short>一言で|ひとことで|一行で|1行で)、?「?(?<content>[^」]+?)」?(?:とだけ|と|って)(?:言って|挨拶して)$",
    "^「(?<content>[^」]+)」(?:とだけ|と|って)(?:言って|答えて|返して|返事して)$",
    "^(?<content>.+?)(?:とだけ|と|って)(?:言って|答えて|返して|返事して)$",
  ),
  whatDidISay: patterns(`(?:さっき|今|いま|直前に|前回).*${WHAT}.*(?:言|聞|書|頼|送)`),
  history: patterns(
    `${WHAT}を(?:話し|伝え|聞き|頼み|言い|書き)`,
    "(?:これまで|今まで|ここまで)の(?:会話|話|やりとり)",
    "会話を覚えて",
    "^何を覚えて",
    "(?:いくつ|何通|何回).*(?:メッセージ|質問)",
  ),
  calculate: patterns(
    "^(?<expression>-?[\\d.]+(?:\\s?(?:[-+*/x×÷＋]|足す|たす|引く|ひく|掛ける|かける|割る|わる)" +
      "\\s?-?[\\d.]+)+)\\s?[=＝]?(?:(?:は|って)(?:いくつ|何|なに)?(?:です)?か?|を計算して)?$",
  ),
  explain: patterns(
    "とは",
    "って(?:何|なに|なん)",
    "(?:を|について)(?:説明|教え)",
    "は(?:何|なん)",
  ),
  capital: patterns("(?<place>\\p{L}+?)の首都"),
};

const valueGroup = (more = "") =>
  `(?<value>(?!${WHAT}|わか|知|覚)[^、。！!？?;；\\s「」${more}]+?)`;
const regex = (source: string) => new RegExp(source, "iu");

/** What somebody has, in a sentence without 「私の」. */
const OWN =
  "(?:好きな(?!の|もの|こと)|嫌いな(?!の|もの|こと)|苦手な(?!の|もの|こと))[^\\sはがをのって、。？?]{1,12}?" +
  "|(?:猫|犬|ペット|妻|夫|子ども|子供|息子|娘|母|父|兄|姉|弟|妹|上司|友達|会社)(?:の名前)?" +
  "|誕生日|趣味|血液型|電話番号|メールアドレス|学校|大学|専攻|国籍|勤務先";
/** 「…は何だっけ？」「…、覚えてる？」, and the same without a question word. */
const ASKED =
  `(?:は|って|が|を)?、?(?:${WHAT})?(?:でした|です|だった|だ)?(?:っけ|か(?:な)?)?` +
  "(?:(?:を|って)?(?:覚えて|知って|わか)[^。？?]*)?[\\s。？?]*$";
/** A statement that ends without 「です」. */
const END = "(?=[。！!\\s]*$)";
/** What looks like a name before 「です」 and is none. */
const NO_NAME =
  "(?!元気|大丈夫|本当|そう|無理|初めて|はじめて|テスト|学生|会社員|在住|嫌|いや|だめ|OK|オーケー|結構|以上|残念|幸せ|暇|正解|質問|お願い|はい|いいえ|もちろん|了解|こんにちは|こんばんは)";

/** What somebody is who says 「エンジニアです」. */
const JOB =
  "[^、。！!？?\\sはがをの]{0,8}(?:エンジニア|プログラマー|デザイナー|ライター|コンサルタント|学生|会社員|公務員|店員|社員|主婦|主夫|医者|学者|記者|[教看護医美薬庭]師|弁護士|看護師|介護士)";

const FACTS: Language["facts"] = [
  {
    key: "名前",
    tell: [
      regex(`(?:${I}|ユーザー)の名前は、?${valueGroup()}${IS}`),
      regex(`${I}[は、]、?${valueGroup("のをにで")}(?:といいます|と言います|と申します)`),
      regex(
        `${I}[は、]、?(?!元気)${valueGroup("のをにでが")}(?<!エンジニア|学生|在住|住み|出身|歳|好き|[者師員人家])(?:です|だよ)(?=[、。！!]|$)`,
      ),
      regex(
        `(?:こんにちは|こんばんは|おはよう(?:ございます)?|はじめまして)[、。！!\\s]*${valueGroup("のをにで")}${IS}`,
      ),
      regex(`${valueGroup("のをにで")}(?:と|って)呼んで`),
      regex(
        `(?:^|[。、！!\\s])名前は、?${valueGroup()}(?:${IS}|(?:って|と)(?:いい|言い)ます|${END})`,
      ),
      regex(
        `(?:^|[。、！!\\s])${valueGroup("のをにでがは")}(?:って|と)(?:いいます|言います|申します)`,
      ),
      regex(
        `^(?!${OWN})${NO_NAME}(?<value>[\\p{sc=Han}\\p{sc=Katakana}ー]{1,8}|[\\p{sc=Hiragana}]{2,5}|\\p{Lu}\\p{L}{1,15})` +
          "(?<!エンジニア|学生|在住|住み|出身|歳|好き|[者師員人家])(?:です|だよ)(?=[。！!\\s]*$)",
      ),
    ],
    ask: [
      regex(`${I}の名前(?:は|って|を)?(?!.*${IS}).*(?:${WHAT}|覚え|知って|わか|言って|教えて)`),
      regex(`${I}の名前(?:は|って)?[\\s。？?]*$`),
      regex(`${I}(?:は|って|が)(?:誰|だれ)`),
      regex(`^(?:ねえ、?|ところで、?)?(?:お|${I}の)?名前${ASKED}`),
    ],
  },
  {
    key: "住まい",
    tell: [
      regex(`(?<!ど)${valueGroup("は")}に(?:住んでい?|在住してい?)(?:ます|る)(?!っけ|か|[?？])`),
      regex(`ユーザーの住まいは${valueGroup()}${IS}`),
      regex(
        `(?:^|[。、！!\\s]|${I}は)、?${valueGroup("はのにで")}(?:に)?(?:在住|住み)(?:です|だよ|だ|の|${END})`,
      ),
      regex(
        `(?:^|[。、！!\\s])(?:${I}の)?(?:住まい|住んでいる(?:ところ|場所)|家)は、?${valueGroup()}${IS}`,
      ),
    ],
    ask: [
      regex(`^(?:${I}(?:は|って|が))?(?:今|いま)?、?どこに住んで`), // not where Mira lives
      regex(`^(?:${I}(?:は|って|が))?(?:今|いま)?、?どこ(?:在住|住み)`),
      regex(`^(?:${I}(?:の|が|、)?)?(?:お?住まい|家|住んで(?:い)?る(?:ところ|場所|の))${ASKED}`),
    ],
  },
  {
    key: "仕事",
    tell: [
      regex(
        `(?:^|[。、！!\\s]|${I}は)、?(?<value>${JOB})(?:です|だよ|だ|を?(?:して|やって)い?(?:ます|る))`,
      ),
      regex(`${valueGroup("は")}(?<!どこ)で働いてい?(?:ます|る)(?!か|[?？])`),
      regex(
        `(?:^|[。、！!\\s]|${I}の|ユーザーの)(?:仕事|職業)は、?${valueGroup()}(?:${IS}|${END})`,
      ),
    ],
    ask: [
      regex(`^(?:${I}(?:は|って|が))?(?:今|いま)?、?どこで働いて`),
      regex(`${I}の(?:仕事|職業)は[\\s。？?]*$|${I}の仕事は(?:何|なん)`),
      regex(`^(?:${I}の)?(?:仕事|職業)${ASKED}`),
    ],
  },
  {
    key: "出身",
    tell: [
      regex(`(?:^|[。、！!\\s]|${I}は)、?${valueGroup("はのにで")}出身(?:です|だよ|だ|${END})`),
      regex(`(?:^|[。、！!\\s]|${I}の|ユーザーの)出身地?は、?${valueGroup()}(?:${IS}|${END})`),
    ],
    ask: [regex(`^(?:${I}の)?(?:ご)?出身地?${ASKED}`), regex("どこ出身")],
  },
  {
    key: "年齢",
    tell: [
      regex("(?<value>\\d+歳)(?:です|だよ|になりました)"),
      regex("年齢は、?(?<value>\\d+歳?)"),
    ],
    ask: [
      regex(`^(?:${I}(?:は|って))?(?:今|いま)?(?:何歳|いくつ)`),
      regex(`^(?:${I}の)?年齢${ASKED}`),
    ],
  },
  {
    key: "好み",
    tell: [
      regex(`${valueGroup("は")}が(?:大)?好き(?!な(?!ん(?:だ|です)))(?!だっけ|ですか)`),
      regex(
        `(?:^|[。、！!\\s])${valueGroup("はがの")}(?:大)?好き(?:です|だよ|なんだ|なんです)(?!か)`,
      ),
      regex(`ユーザーの好みは${valueGroup()}${IS}`),
      regex(`(?:^|[。、！!\\s]|${I}の)好きな(?:もの|こと|の)は、?${valueGroup()}(?:${IS}|${END})`),
    ],
    ask: [regex("(?:何|なに)が(?:大)?好き"), regex(`^(?:${I}の)?好きな(?:もの|こと|の)${ASKED}`)],
  },
  {
    // Any other fact, such as 「私の猫の名前はタマです」.
    tell: [
      regex(`(?:${I}|うち)の(?<key>[^、。！!？?\\s]{1,20}?)は、?${valueGroup()}${IS}`),
      regex(`ユーザーの(?<key>[^、。！!？?\\s]{1,20}?)は${valueGroup()}${IS}`),
      regex(`(?:^|[。、！!\\s])(?<key>${OWN})は、?${valueGroup()}(?:${IS}|っていいます|${END})`),
    ],
    ask: [
      regex(`^(?:${I}の|うちの)?(?<key>${OWN})${ASKED}`),
      regex(
        `(?:${I}|うち)の(?<key>[^、。！!？?\\s]{1,20}?)(?:は|って)${WHAT}?(?:でした|です)?(?:っけ|か)?[\\s。？?]*$`,
      ),
      regex(`(?:${I}|うち)の(?<key>[^、。！!？?\\s]{1,20}?)を(?:覚えて|知って)`),
    ],
  },
];

const EXPLANATIONS: [RegExp, string][] = [
  [
    /ハートビート|heartbeat/iu,
    "ハートビートでは、誰にも聞かれなくてもHEARTBEAT.mdを見ます。知らせることがなければHEARTBEAT_OKと答え、何も届きません。",
  ],
  [/レーン|\blanes?\b/iu, "レーンは、同時に動かす数に上限のある列です。残りは順番に待ちます。"],
  [
    /エージェント(?:の)?ループ|agent loop/iu,
    "エージェントループは、モデルに尋ね、呼ばれたツールを動かし、結果を渡してまた尋ねる、という繰り返しです。" +
      "ツールが呼ばれなくなったら終わります。",
  ],
  [
    /エージェント|agent/iu,
    "エージェントは、ループの中に置いたモデルです。尋ねられ、必要ならツールを呼び、結果を受け取り、答えが出るまで続けます。",
  ],
  [
    /停止理由|stop[_ ]reason/iu,
    "停止理由は、応答がなぜ終わったかを表します。言い終えたらend_turn、ツールを使いたければtool_use、途中で切れたらmax_tokensです。",
  ],
  [
    /ツール|tool/iu,
    "ツールは、モデルが「使いたい」と頼める、プログラム側の関数です。名前と説明と入力のスキーマでできています。",
  ],
  [
    /ゲートウェイ|gateway/iu,
    "ゲートウェイは、いろいろなプラットフォームにいる人と、答えるエージェントの間に立ちます。宛先を決め、会話を覚え、返事を届けます。",
  ],
  [
    /トークン|token/iu,
    "トークンは文章のかけらです。英語なら4文字ほど、日本語なら1文字ほど。モデルの読み書きも料金もトークン単位です。",
  ],
  [/セッション|session/iu, "セッションは、あとで続きができるように残してある会話です。"],
];

const KNOWN: Record<string, (value: string) => string> = {
  名前: (value) => `${value}さんです。`,
  住まい: (value) => `${value}にお住まいです。`,
  仕事: (value) => `お仕事は${value}と聞いています。`,
  好み: (value) => `${value}がお好きです。`,
};

const BEFORE: Record<Kind, (on: string) => string> = {
  read: (on) => `${on}を読みます。`,
  run: (on) => `\`${on}\`を実行します。`,
  write: (on) => `${on}に書き込みます。`,
  edit: (on) => `${on}を書き換えます。`,
  list: (on) => (on === "." ? "ファイルの一覧を見てみます。" : `${on}の中を見てみます。`),
  time: () => "時計を見ます。",
  remember: () => "メモしておきます。",
  recall: () => "記憶を探します。",
};

const RESULTS: Record<string, (on: string, text: string) => string> = {
  read_file: (on, text) => (text ? `${on}の内容です。\n\n${text}` : `${on}は空です。`),
  bash: (on, text) =>
    !text || text === "(no output)"
      ? `\`${on}\`を実行しました。出力はありません。`
      : `\`${on}\`の出力です。\n\n${text}`,
  write_file: (on, text) => `${on}に書き込みました。（${text}）`,
  edit_file: (on, text) => `${on}を書き換えました。（${text}）`,
  list_directory: (on, text) =>
    `${on === "." ? "ワークスペース" : on}の中身です。\n\n${text || "（空）"}`,
  get_current_time: (_on, text) => `現在の日時は${text}です。`,
  memory_write: () => "覚えました。",
  memory_search: (_on, text) =>
    text && text !== "nothing found"
      ? `覚えているのは次のとおりです。\n\n${text}`
      : "その件については何も覚えていません。",
};

const STORY = [
  "%日目、小さなゲートウェイはメッセージより早く目を覚まし、レーンの数を数えました。",
  "%日目に長い質問が届き、ゲートウェイは専用のセッションを用意しました。",
  "%日目、モデルはしばらく考えてツールを呼び、結果を二度読みました。",
  "%日目はケーブルがゆるんでいたので、ゲートウェイは届いたものをすべて記録してから眠りました。",
  "%日目には友人が二人同時に書いてきて、どちらにも順番どおりに、ほかに誰もいないかのような返事が届きました。",
  "%日目は何も起こらず、ハートビートは何も送らず、何もないことを伝えました。",
];

function example(tools: string[]): string {
  if (tools.includes("read_file")) return "（例：「SOUL.mdを読んで」）";
  return tools.includes("bash") ? "（例：「`ls`を実行して」）" : "";
}

const SENTENCES: Sentences = {
  identity: (persona) =>
    `${persona ? `${persona}として答えていますが、中身は` : ""}` +
    "このチュートリアルの練習用モデルです。決まったルールで動く小さなプログラムで、本物の言語モデルではありません。" +
    "本物と話すには、.envにキーを書いてください。",
  help: (tools) =>
    "決まったルールで動く練習用モデルです。話してくれたことを覚える（「私の名前は葵です」）、計算する（「2+3は？」）、" +
    "数を数える、長いお話をする、といったことができます。" +
    (tools.length > 0
      ? `ツールは${tools.join("、")}があります${example(tools)}。`
      : "ここで使えるツールはありません。"),
  noTool: (tools) =>
    tools.length > 0
      ? `そのためのツールがここにはありません。あるのは${tools.join("、")}です。`
      : "できません。ここにはツールがなく、話すことしかできないのです。",
  noClock: "わかりません。時計も、時刻を知るツールもありません。",
  noMemory: "この会話に残っているうちは覚えています。それ以外の記憶は、ここにはありません。",
  before: (what, on) => BEFORE[what](on),
  result: (tool, on, text) => (RESULTS[tool] ?? (() => `${tool}の結果です。\n\n${text}`))(on, text),
  failed: (tool, text) => `うまくいきませんでした。${tool}の返事：${text}`,
  greeting: (hour) =>
    `${hour ? `${hour}。` : ""}決まったルールで答える練習用モデルです。何を試しましょうか。`,
  goodbye: "さようなら。（終了するにはquitと入力してください）",
  thanks: "どういたしまして。",
  howAreYou: "小さなプログラムなりに元気です。ありがとうございます。",
  told: (key, value) =>
    key === "名前"
      ? `${value}さんですね。よろしくお願いします。`
      : `わかりました。${SENTENCES.known(key, value)}`,
  known: (key, value) => KNOWN[key]?.(value) ?? `${key}は${value}です。`,
  remembered: (memory) => `こう覚えています。${memory}`,
  unknown: (key) =>
    key === "名前"
      ? "お名前はわかりません。受け取ったメッセージのどこにも書かれていません。"
      : "わかりません。受け取ったメッセージの中では聞いていません。",
  youSaid: (text) =>
    text ? `「${text}」と書いていました。` : "受け取ったメッセージの中では、何も言っていません。",
  history: (requests) => {
    if (requests.length === 0) return "これが、受け取った最初のメッセージです。";
    const last = requests.slice(-3).map((text) => `「${text}」`);
    return `これより前に受け取ったのは、${requests.length > 3 ? "…" : ""}${last.join("")}です。`;
  },
  summary: (facts, files, requests) =>
    [
      "ここまでの会話の要約。",
      ...facts.map(([key, value]) => `ユーザーの${key}は${value}です。`),
      files.length > 0 ? `出てきたファイル：${files.join("、")}。` : "",
      requests.length > 0 ? `最近の依頼：${requests.join("；")}` : "依頼はなし。",
    ].join(""),
  thinking: (topic) =>
    `${topic}について考えてほしいとのこと。ルールで動くプログラムなので、すぐに終わる。`,
  thought: (topic) =>
    `${topic}について、練習用モデルなりに考えてみました。本物のモデルに聞くだけの価値がある話です。`,
  sum: (expression, value) => `${expression} = ${value}`,
  capital: (place, city) => `${place}の首都は${city}です。`,
  haiku: "問うて呼び\n結果を待てる\n夜長かな",
  joke: "エージェントが立ち止まったのはなぜ？ 続ける理由がなかったから。（停止理由はend_turnでした）",
  storyLine: (number) => (STORY[number % STORY.length] ?? "").replace("%", String(number + 1)),
  code: "ゲートウェイはコードで日記をつけていました。",
  end: "いまのところは、ここまでです。",
  greet: (greeting, name) => `${name && `${name}さん、`}${greeting}。`,
  reminder: (what, why, question) =>
    `${why}お忘れなく：${what}。${question ? "この一年はどうだったか、聞いてみては。" : ""}`,
  noReminder:
    "時間になっても、起こしてくれる人がいません。CRON.jsonにジョブを書いておいてもらえれば、その時に言います。",
  resumed: "検索しましたが、この練習環境にはネットワークがなく、何も見つかりませんでした。",
};

/** The end of a part that another one follows, as in 「…を読んで、」 or 「…と書いてから、」. */
const JOINED =
  "(?<=(?:読んで|返して|直して|開いて|見せて|表示して|確認して|書いて|込んで|出して|保存して|入れて|変えて" +
  "|変更して|換えて|置換して|実行して|走らせて|動かして|作って|作成して|教えて|覚えて|おいて))";

export const JAPANESE: Language = {
  // The others are the Japanese forms of characters that Chinese writes in another way.
  script: /[\p{sc=Hiragana}\p{sc=Katakana}気円広図実対読売変楽薬働込駅歳]/u,
  alsoScript: /\p{sc=Han}/u,
  patterns: PATTERNS,
  facts: FACTS,
  separator: new RegExp(
    `${JOINED}(?:(?<then>から、?|、?(?:それから|そのあと|その後|次に)、?)|、)\\s*|。\\s*(?=\\S)`,
    "giu",
  ),
  before:
    /^(?:では|じゃあ|次に|次は|まず|それから|それでは|あと|ねえ|すみません|ちょっと)[、,\s]*/u,
  after:
    /(?:、?お願い(?:します|できますか)?|ください|下さい|くれますか|くれる|くれない|もらえますか|もらえる|ほしい(?:です)?|いただけますか|ちょうだい)?[ねよ]?[\s。.!！?？]*$/u,
  pronoun: new RegExp(`^${IT}$`, "u"),
  refers: new RegExp(`${IT}|もう一度|読み返して|^${RUN}$`, "u"),
  isSummary: /^(?:\W*summary of\b|ここまでの会話の要約)/iu,
  forever: /ずっと|延々と|永遠に|いつまでも|無限に|何度も/u,
  explanations: EXPLANATIONS,
  operators: [
    [/＋|足す|たす/gu, "+"],
    [/引く|ひく/gu, "-"],
    [/x|×|掛ける|かける/giu, "*"],
    [/÷|割る|わる/gu, "/"],
  ],
  capitals: {
    フランス: "パリ",
    日本: "東京",
    中国: "北京",
    ドイツ: "ベルリン",
    イタリア: "ローマ",
    スペイン: "マドリード",
    イギリス: "ロンドン",
    アメリカ: "ワシントンD.C.",
    韓国: "ソウル",
  },
  gap: "",
  say: SENTENCES,
};
